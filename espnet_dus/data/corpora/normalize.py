"""One convention for the transcripts of all English corpora.

Lower-case words of the letters a to z and the apostrophe, single spaces. Punctuation is
left out; what cannot be written so without knowing how it was said (digits, symbols) is
an error, so that the utterance is left out and not taught wrongly.
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
        text: As the corpus has it.

    Returns:
        Lower-case words.

    Raises:
        ValueError: It holds something whose spoken form is not known, a mark of noise
            or of unintelligible speech, or no word.
    """
    line = text.lower()
    for apostrophe in APOSTROPHES:
        line = line.replace(apostrophe, "'")
    line = PUNCTUATION_TAGS.sub(" ", line)
    if tag := UNSPOKEN.search(line):
        raise ValueError(f"'{text}': {tag[0]} is no word")
    # é is e and an accent, which is dropped
    line = unicodedata.normalize("NFD", line.replace("æ", "ae").replace("œ", "oe"))
    line = "".join(c for c in line if not unicodedata.combining(c))
    line = PUNCTUATION.sub(" ", SEPARATORS.sub(" ", line))
    if other := OTHER.search(" ".join(line.split())):
        raise ValueError(f"'{text}': how '{other[0]}' was said is not known")
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
