"""What must not be trained on: the speakers and the sentences of the test sets.

Corpora overlap: MLS and LibriSpeech are read from the same books by the same LibriVox
readers. An utterance is held out if its speaker is one of the test sets', if its
transcript holds `NGRAM` words that stand together in one of theirs, or, shorter than
that, is one of theirs as a whole.
"""

import hashlib
from pathlib import Path
from typing import Iterable, List, Optional, Sequence, Set, Union

from espnet_dus.data.corpora.normalize import normalize_text
from espnet_dus.data.data_dir import DataDir

NGRAM = 8
FEWEST_WORDS = 4  # "yes sir" is in every corpus and gives nothing away


class HeldOut:
    """The speakers and sentences of test sets.

    Args:
        transcripts: In the common convention.
        speakers: Their ids; of readers of LibriVox, their numbers there.
    """

    def __init__(self, transcripts: Iterable[str], speakers: Iterable[str]):
        self.speakers: Set[str] = set(speakers)
        self.ngrams: Set[str] = set()
        self.whole: Set[str] = set()
        for text in transcripts:
            words = text.split()
            self.ngrams.update(_ngrams(words))
            if FEWEST_WORDS <= len(words) < NGRAM:
                self.whole.add(text)

    @classmethod
    def read(cls, data_dirs: Sequence[Union[str, Path]]) -> "HeldOut":
        """Read the test sets' data directories.

        The speaker `1089-134686`, a reader and a chapter, counts as the reader 1089.

        Raises:
            ValueError: One is not a data directory.
        """
        transcripts, speakers = [], []
        for path in data_dirs:
            tables = DataDir.read(path).tables
            transcripts += [normalize_text(text) for text in tables["text"].values()]
            speakers += [spk.split("-")[0] for spk in tables["utt2spk"].values()]
        return cls(transcripts, speakers)

    def reason(self, text: str, speaker: Optional[str]) -> Optional[str]:
        """Say why an utterance must not be trained on; None: it may be.

        Args:
            text: Its transcript in the common convention.
            speaker: Who speaks; None: not known, or of another numbering.
        """
        if speaker in self.speakers:
            return "test speaker"
        words = text.split()
        if text in self.whole or any(n in self.ngrams for n in _ngrams(words)):
            return "test sentence"
        return None

    def digest(self) -> str:
        """Digest all of it."""
        parts = [sorted(part) for part in (self.speakers, self.ngrams, self.whole)]
        return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _ngrams(words: List[str]) -> Iterable[str]:
    return (
        " ".join(words[place : place + NGRAM])
        for place in range(len(words) - NGRAM + 1)
    )
