"""One convention for the transcripts of all corpora."""

import pytest

from espnet_dus.data.corpora.normalize import normalize_text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("HELLO WORLD", "hello world"),  # LibriSpeech
        ("and then there's the cat", "and then there's the cat"),  # MLS
        ("it 's  one of those things we don 't know", None),  # TED-LIUM
        ("AS THEY'RE LEAVING <COMMA> CAN KASH <QUESTIONMARK>", None),  # GigaSpeech
        ("“Hello,” he said — a well-known café…", None),  # Common Voice
        ("Don’t you (really) know; or: do you?", None),
        ("'well' said he o'clock the boys' toys", None),
        ("Ångström's naïve Æsop", "angstrom's naive aesop"),
    ],
)
def test_transcripts_become_words(text, expected):
    expected = (
        expected
        or {
            "it": "it's one of those things we don't know",
            "AS": "as they're leaving can kash",
            "“He": "hello he said a well known cafe",
            "Do": "don't you really know or do you",
            "'w": "well said he o'clock the boys' toys",
        }[next(k for k in ("it", "AS", "“He", "Do", "'w") if text.startswith(k))]
    )
    assert normalize_text(text) == expected
    assert normalize_text(expected) == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("in 1999", "the spoken form of '1' is unknown"),
        ("50 %", "the spoken form of '5' is unknown"),
        ("ma'am & co", "the spoken form of '&' is unknown"),
        ("это", "the spoken form of 'э' is unknown"),
        ("i <unk> know", "<unk> is not a word"),
        ("well [noise] so", r"\[noise\] is not a word"),
        ("{NOISE} so", "{noise} is not a word"),
        ("<SIL>", "<sil> is not a word"),
        (" ... ", "no word"),
        ("", "no word"),
    ],
)
def test_what_cannot_be_written_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        normalize_text(text)
