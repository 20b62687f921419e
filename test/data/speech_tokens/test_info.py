"""The description of a speech tokenizer and its identity."""

import json

import numpy as np
import pytest

from espnet_dus.data.speech_tokens.info import (
    CENTRES,
    INFO,
    TokenizerInfo,
    check_same_tokenizer,
    read_tokenizer,
)

CENTRES_KD = np.arange(6, dtype=np.float32).reshape(3, 2)


def toy(**changes):
    fields = dict(
        name="toy",
        encoder={"frontend": "default"},
        frames_per_second=50.0,
        sampling_rate=16000,
        vocab_sizes=[3],
    )
    return TokenizerInfo(**{**fields, **changes})


def test_is_read_as_written(tmp_path):
    written = toy(learned_on={"hours": 1.5}).write(tmp_path, CENTRES_KD)
    info, centres = read_tokenizer(tmp_path)
    assert info == written
    assert info.vocab_sizes == (3,) and info.streams == 1
    assert info.identity == {"name": "toy", "sha256": info.sha256}
    assert len(info.sha256) == 64
    np.testing.assert_array_equal(centres, CENTRES_KD)


def test_streams_need_no_centres(tmp_path):
    toy(vocab_sizes=[5000] + [1024] * 8).write(tmp_path)
    info, centres = read_tokenizer(tmp_path)
    assert centres is None
    assert info.streams == 9 and sum(info.vocab_sizes) == 13192


def test_the_identity_is_that_of_centres_encoder_and_removal(tmp_path):
    same = toy(learned_on={"hours": 1.0}).write(tmp_path, CENTRES_KD).sha256
    assert toy().write(tmp_path, CENTRES_KD).sha256 == same
    others = [
        toy().write(tmp_path, CENTRES_KD + 1),
        toy(remove_repeats=True).write(tmp_path, CENTRES_KD),
        toy(encoder={"frontend": "s3prl"}).write(tmp_path, CENTRES_KD),
        toy(name="other").write(tmp_path, CENTRES_KD),
    ]
    assert len({same, *(info.sha256 for info in others)}) == 5


@pytest.mark.parametrize("change", ["centres", "no centres", "field", "garbage"])
def test_a_changed_directory_is_refused(tmp_path, change):
    toy().write(tmp_path, CENTRES_KD)
    if change == "centres":
        other = tmp_path / "other"
        toy().write(other, CENTRES_KD * 2)
        (other / CENTRES).replace(tmp_path / CENTRES)
    elif change == "no centres":
        (tmp_path / CENTRES).unlink()
    elif change == "garbage":
        (tmp_path / CENTRES).write_bytes(b"no tensors")
    else:
        fields = json.loads((tmp_path / INFO).read_text())
        (tmp_path / INFO).write_text(json.dumps({**fields, "frames_per_second": 25.0}))
    with pytest.raises(ValueError, match="damaged" if change == "garbage" else "chang"):
        TokenizerInfo.read(tmp_path)


@pytest.mark.parametrize("text", [None, "{}", "[", '{"name": 1, "unknown": 2}'])
def test_what_is_no_tokenizer_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / INFO).write_text(text)
    with pytest.raises(ValueError, match="tokenizer.json"):
        TokenizerInfo.read(tmp_path)


def test_repeats_are_removed_from_single_streams_only():
    with pytest.raises(ValueError, match="from one stream, but it has 2"):
        toy(vocab_sizes=[3, 4], remove_repeats=True)
    with pytest.raises(ValueError, match=r"vocab_sizes is \[\]"):
        toy(vocab_sizes=[])


def test_another_tokenizer_is_refused_by_name(tmp_path):
    info = toy().write(tmp_path / "a", CENTRES_KD)
    other = toy(name="other").write(tmp_path / "b", CENTRES_KD)
    check_same_tokenizer(info.identity, info)
    with pytest.raises(RuntimeError, match="tokenizer toy .* at hand is other "):
        check_same_tokenizer(info.identity, other)
