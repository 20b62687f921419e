"""Public English corpora to shards: prepared by lhotse, without what is held out.

Each corpus is prepared alone, so that all can be prepared side by side.
"""

import hashlib
import importlib
import logging
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple, Union

from lhotse import MonoCut, Recording, SupervisionSegment

from espnet_dus.data.corpora.held_out import HeldOut
from espnet_dus.data.corpora.normalize import normalize_text
from espnet_dus.data.shards.shar import SHUFFLE_SEED, write_shards

Manifests = Dict[str, Any]


@dataclass(frozen=True)
class Corpus:
    """How lhotse prepares a corpus.

    Attributes:
        recipe: The function `prepare_<recipe>` of `lhotse.recipes`.
        train: Where the training part stands in what it returns.
        options: Of the function.
        librivox: Whether speakers are numbered as LibriVox's readers are.
    """

    recipe: str
    train: Tuple[str, ...]
    options: Dict[str, Any] = field(default_factory=dict)
    librivox: bool = False

    def prepare(self, corpus_dir: Path, manifest_dir: Path, nj: int) -> Manifests:
        """Give recordings and supervisions of the training part.

        Raises:
            ValueError: They are not there.
        """
        recipes = importlib.import_module("lhotse.recipes")
        function = getattr(recipes, f"prepare_{self.recipe}")
        prepared = function(
            corpus_dir, output_dir=manifest_dir, num_jobs=nj, **self.options
        )
        for key in self.train:
            if key not in prepared:
                raise ValueError(
                    f"{corpus_dir}: no part {'/'.join(self.train)} was found there"
                )
            prepared = prepared[key]
        return prepared


CORPORA = {
    "mls": Corpus("mls", ("english", "train"), {"opus": False}, librivox=True),
    "mls_opus": Corpus("mls", ("english", "train"), {"opus": True}, librivox=True),
    "voxpopuli": Corpus("voxpopuli", ("train",), {"task": "asr", "lang": "en"}),
    "tedlium3": Corpus("tedlium", ("train",), {"dataset_parts": "train"}),
    "commonvoice": Corpus(
        "commonvoice", ("en", "train"), {"languages": "en", "splits": ["train"]}
    ),
    "gigaspeech": Corpus("gigaspeech", ("XL",), {"dataset_parts": "XL"}),
    "peoples_speech": Corpus("peoples_speech", ("train/clean",)),
}


def prepare_corpus(
    name: str,
    corpus_dir: Union[str, Path],
    out_dir: Union[str, Path],
    manifest_dir: Union[str, Path],
    held_out: HeldOut,
    nj: int = 1,
    shard_size: int = 1000,
    max_bad_utterances: int = 0,
    min_duration: float = 0.5,
    max_duration: float = 30.0,
) -> None:
    """Write the shards of a corpus's training part.

    Args:
        name: One of `CORPORA`.
        corpus_dir: The corpus, as its archives make it.
        out_dir: The directory of shards to write.
        manifest_dir: For lhotse's manifests; found again by a second run.
        held_out: What must not be trained on.
        nj: Number of processes.
        shard_size: Utterances in a shard.
        max_bad_utterances: So many unreadable ones may be left out.
        min_duration: Shorter utterances are left out (seconds).
        max_duration: Longer utterances are left out (seconds).

    Raises:
        ValueError: There is no such corpus, or nothing is left of it.
        TooManyBadUtterances: More are unreadable.
    """
    if name not in CORPORA:
        raise ValueError(f"corpus {name!r}: not among {', '.join(CORPORA)}")
    if not Path(corpus_dir).is_dir():
        raise ValueError(
            f"{name}: {str(corpus_dir)!r} is no directory: name the corpus in db.sh"
        )
    corpus = CORPORA[name]
    manifests = corpus.prepare(Path(corpus_dir), Path(manifest_dir), nj)
    supervisions = list(manifests["supervisions"])
    random.Random(SHUFFLE_SEED).shuffle(supervisions)
    source = hashlib.blake2b(digest_size=8)
    options = (name, held_out.digest(), shard_size, min_duration, max_duration)
    source.update(repr(options).encode())
    for said in supervisions:
        source.update(f"{said.id} {said.start} {said.duration} {said.text}\n".encode())
    counts: Counter = Counter()
    cuts = _cuts(
        supervisions,
        {recording.id: recording for recording in manifests["recordings"]},
        held_out,
        corpus.librivox,
        (min_duration, max_duration),
        counts,
    )
    write_shards(
        cuts,
        out_dir,
        source.hexdigest(),
        shard_size=shard_size,
        nj=nj,
        max_bad_utterances=max_bad_utterances,
    )
    for reason, count in counts.most_common():
        logging.info(f"{out_dir}: {reason}: {count} of {len(supervisions)}")


def _cuts(
    supervisions: List[SupervisionSegment],
    recordings: Dict[str, Recording],
    held_out: HeldOut,
    librivox: bool,
    durations: Tuple[float, float],
    counts: Counter,
) -> Iterator[MonoCut]:
    """Give a cut for each utterance that may be trained on; count the others."""
    shortest, longest = durations
    for said in supervisions:
        if not shortest <= said.duration <= longest:
            counts["too short or too long"] += 1
            continue
        try:
            text = normalize_text(said.text or "")
        except ValueError:
            counts["transcript that cannot be written as words"] += 1
            continue
        if reason := held_out.reason(text, said.speaker if librivox else None):
            counts[reason] += 1
            continue
        counts["kept"] += 1
        channel = said.channel if isinstance(said.channel, int) else said.channel[0]
        yield MonoCut(
            id=said.id,
            start=said.start,
            duration=said.duration,
            channel=channel,
            recording=recordings[said.recording_id],
            supervisions=[
                SupervisionSegment(
                    id=said.id,
                    recording_id=said.recording_id,
                    start=0,
                    duration=said.duration,
                    text=text,
                    speaker=said.speaker,
                )
            ],
        )
