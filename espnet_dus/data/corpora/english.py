"""Public English corpora as shards, without the utterances that are held out.

Each corpus is prepared alone, so that several can be prepared in parallel.
"""

import functools
import hashlib
import logging
import random
from collections import Counter
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple, Union

from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.utils import fastcopy

from espnet_dus.data.corpora.held_out import HeldOut
from espnet_dus.data.corpora.lhotse_corpus import LhotseCorpus
from espnet_dus.data.corpora.normalize import normalize_text
from espnet_dus.data.shards.from_cuts import SHUFFLE_SEED, in_blocks, store_audio
from espnet_dus.data.shards.shar_writer import write_blocks

FS = 16000  # Hz; audio of other rates is converted

CORPORA = {
    "mls": LhotseCorpus("mls", ("english", "train"), {"opus": False}, librivox=True),
    "mls_opus": LhotseCorpus(
        "mls", ("english", "train"), {"opus": True}, librivox=True
    ),
    "voxpopuli": LhotseCorpus("voxpopuli", ("train",), {"task": "asr", "lang": "en"}),
    "tedlium3": LhotseCorpus("tedlium", ("train",), {"dataset_parts": "train"}),
    "commonvoice": LhotseCorpus(
        "commonvoice", ("en", "train"), {"languages": "en", "splits": ["train"]}
    ),
    "gigaspeech": LhotseCorpus("gigaspeech", ("XL",), {"dataset_parts": "XL"}),
    "peoples_speech": LhotseCorpus("peoples_speech", ("train/clean",)),
}


def prepare_corpus(
    name: str,
    corpus_dir: Union[str, Path],
    out_dir: Union[str, Path],
    manifest_dir: Union[str, Path],
    held_out: Sequence[Union[str, Path]],
    nj: int = 1,
    shard_size: int = 1000,
    max_bad_utterances: int = 0,
    min_duration: float = 0.5,
    max_duration: float = 30.0,
) -> None:
    """Write the shards of a corpus's training part.

    Args:
        name: Its name: mls, mls_opus, voxpopuli, tedlium3, commonvoice, gigaspeech or
            peoples_speech.
        corpus_dir: The corpus, as its archives make it.
        out_dir: The directory of shards to write.
        manifest_dir: Directory for lhotse's manifests, which a second run reads.
        held_out: Data directories whose speakers and sentences must not be trained on.
        nj: Number of processes.
        shard_size: Utterances in a shard.
        max_bad_utterances: Number of unreadable utterances that may be left out.
        min_duration: Shorter utterances are left out (seconds).
        max_duration: Longer utterances are left out (seconds).

    Raises:
        ValueError: The corpus is unknown or missing, or nothing is left of it.
        TooManyBadUtterances: More are unreadable.
    """
    if name not in CORPORA:
        raise ValueError(f"corpus {name!r}: not among {', '.join(CORPORA)}")
    if not Path(corpus_dir).is_dir():
        raise ValueError(
            f"{name}: {str(corpus_dir)!r} is not a directory: set it in db.sh"
        )
    corpus, unwanted = CORPORA[name], HeldOut.read(held_out)
    manifests = corpus.prepare(Path(corpus_dir), Path(manifest_dir), nj)
    supervisions = list(manifests["supervisions"])
    random.Random(SHUFFLE_SEED).shuffle(supervisions)
    source = hashlib.blake2b(digest_size=8)
    options = (name, unwanted.digest(), shard_size, min_duration, max_duration)
    source.update(repr(options).encode())
    for said in supervisions:
        source.update(f"{said.id} {said.start} {said.duration} {said.text}\n".encode())
    counts: Counter = Counter()
    cuts = _cuts(
        supervisions,
        {recording.id: recording for recording in manifests["recordings"]},
        unwanted,
        corpus.librivox,
        (min_duration, max_duration),
        counts,
    )
    write_blocks(
        in_blocks(cuts, shard_size),
        functools.partial(store_audio, fs=FS),
        out_dir,
        source.hexdigest(),
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
    """Yield a cut for each utterance that may be trained on; count the others."""
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
            supervisions=[fastcopy(said, start=0.0, text=text)],
        )
