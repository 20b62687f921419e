"""Speakers and sentences of the test sets, which are held out of the training.

Corpora overlap: MLS and LibriSpeech are read from the same books by the same LibriVox
readers. An utterance is held out if its speaker is in a test set, if its transcript
shares `NGRAM` consecutive words with one of a test set, or if it is shorter than that
and equals one.
"""

import hashlib
from pathlib import Path
from typing import Iterable, List, Optional, Sequence, Set, Union

from espnet_dus.data.corpora.normalize import normalize_text
from espnet_dus.data.data_dir import DataDir

NGRAM = 8
FEWEST_WORDS = 4  # "yes sir" is in every corpus and reveals nothing


class HeldOut:
    """The speakers and sentences of test sets.

    Args:
        transcripts: In the common convention.
        speakers: Their ids; LibriVox's number for its readers.
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

        The speaker `1089-134686`, a reader in a chapter, counts as reader 1089.

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
        """Return why an utterance is held out, or None if it is not.

        Args:
            text: Its transcript in the common convention.
            speaker: The speaker; None: unknown, or of another numbering.
        """
        if speaker in self.speakers:
            return "test speaker"
        words = text.split()
        if text in self.whole or any(n in self.ngrams for n in _ngrams(words)):
            return "test sentence"
        return None

    def digest(self) -> str:
        """Return a digest of speakers and sentences."""
        parts = [sorted(part) for part in (self.speakers, self.ngrams, self.whole)]
        return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _ngrams(words: List[str]) -> Iterable[str]:
    return (
        " ".join(words[place : place + NGRAM])
        for place in range(len(words) - NGRAM + 1)
    )
