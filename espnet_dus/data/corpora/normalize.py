"""One convention for the transcripts of all English corpora.

Lower-case words of the letters a to z and the apostrophe, separated by single spaces.
Punctuation is removed. What has no certain spoken form (digits, symbols) is an error,
so that the utterance is left out rather than trained on with a wrong transcript.
"""

import re
import unicodedata

APOSTROPHES = "’‘ʼ`´"
# GigaSpeech writes <COMMA>, TED-LIUM <unk>, others [noise] or {noise}.
PUNCTUATION_TAGS = re.compile(r"<(comma|period|questionmark|exclamationpoint)>")
UNSPOKEN = re.compile(r"<[^>]*>|\[[^\]]*\]|\{[^}]*\}")
# TED-LIUM writes "it 's" and "don 't".
SPLIT_CONTRACTION = re.compile(r"(?<=[a-z]) '(?=(s|t|re|ve|ll|d|m)\b)")
SEPARATORS = re.compile(r"[-–—/_…]")
PUNCTUATION = re.compile(r"[.,;:!?\"“”„«»()]")
OTHER = re.compile(r"[^a-z' ]")


def normalize_text(text: str) -> str:
    """Write a transcript in the common convention.

    Args:
        text: The corpus's transcript.

    Returns:
        Lower-case words.

    Raises:
        ValueError: It holds something whose spoken form is unknown, a mark of noise or
            unintelligible speech, or no word.
    """
    line = text.lower()
    for apostrophe in APOSTROPHES:
        line = line.replace(apostrophe, "'")
    line = PUNCTUATION_TAGS.sub(" ", line)
    if tag := UNSPOKEN.search(line):
        raise ValueError(f"'{text}': {tag[0]} is not a word")
    # é is e and an accent, which is dropped
    line = unicodedata.normalize("NFD", line.replace("æ", "ae").replace("œ", "oe"))
    line = "".join(c for c in line if not unicodedata.combining(c))
    line = PUNCTUATION.sub(" ", SEPARATORS.sub(" ", line))
    if other := OTHER.search(" ".join(line.split())):
        raise ValueError(f"'{text}': the spoken form of '{other[0]}' is unknown")
    line = SPLIT_CONTRACTION.sub("'", " ".join(line.split()))
    # quotation marks that are apostrophes: 'well' said he
    words = [_without_quotes(word) for word in line.split()]
    line = " ".join(word for word in words if word)
    if not line:
        raise ValueError(f"'{text}': no word")
    return line


def _without_quotes(word: str) -> str:
    if word.startswith("'") and word.endswith("'"):
        return word.strip("'")
    return word
