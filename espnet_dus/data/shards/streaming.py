"""Training on more data than fits in memory: shards, read from start to end.

Each process of each rank's data loader is a place. A place reads its own shards (see
`mix.py`), mixes the corpora, keeps a few thousand utterances in buckets by length, and
fills batches up to a number of LLM positions (lhotse's `DynamicBucketingSampler`). All
it does follows from the seed, the epoch and the place, so that the state of an epoch is
only how many batches each place has given.
"""

import hashlib
import logging
import random
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from lhotse import CutSet
from lhotse.audio.backend import LibsndfileBackend, set_current_audio_backend
from lhotse.dataset.sampling.base import SamplingConstraint
from lhotse.dataset.sampling.dynamic_bucketing import (
    DynamicBucketingSampler,
    estimate_duration_buckets,
)

from espnet_dus.data.data_dir import parse_speed
from espnet_dus.data.dataset import BadUtterances, DUSPreprocessor
from espnet_dus.data.lengths import LENGTH_MULTIPLE
from espnet_dus.data.shards.augment import Augmentation
from espnet_dus.data.shards.cut_stream import (
    Batch,
    BatchMaker,
    BatchSizeConstraint,
    SequenceConstraint,
    SequenceLength,
    Utterances,
    read_batch_sizes,
)
from espnet_dus.data.shards.mix import (
    Corpus,
    Shard,
    deal,
    read_weights,
    shards_of_epoch,
)
from espnet_dus.data.shards.shar import list_shards, read_info

NOT_YET = "not yet"
NUM_FOR_BUCKETS = 5000  # utterances that the buckets' bounds are estimated from


@dataclass
class StreamingIterFactory(AbsIterFactory):
    """Builds the iterator of each epoch (ESPnet's `--iterator_type task`).

    Attributes:
        corpora: What is read, with weights.
        length: Measures an utterance.
        make_batch: Turns cuts into a batch.
        max_tokens: LLM positions in a batch, padding included.
        batch_sizes: Utterances in a batch by the LLM positions of the longest
            (dus_find_batch); not None: used instead of `max_tokens`.
        num_buckets: Most buckets of similar length.
        buffer_size: Utterances, with their audio, that wait in a place's buckets.
        epochs_per_pass: Epochs that see the data once.
        speed_factors: Of the speech.
        num_iters_per_epoch: An epoch ends after so many batches of this rank; None:
            with its shards.
        num_workers: Processes that read, for each rank; 0: the training's own.
        rank: Of this process.
        world_size: Processes that train.
        seed: For all that is random.
        pin_memory: Whether batches are read into pinned memory.

    Raises:
        ValueError: There are fewer shards than places to read them.
    """

    corpora: Sequence[Corpus]
    length: SequenceLength
    make_batch: BatchMaker
    max_tokens: int
    batch_sizes: Optional[Dict[int, int]]
    num_buckets: int
    buffer_size: int
    epochs_per_pass: int
    speed_factors: Sequence[float]
    num_iters_per_epoch: Optional[int]
    num_workers: int
    rank: int
    world_size: int
    seed: int
    pin_memory: bool = False

    def __post_init__(self):
        self.places = max(self.num_workers, 1)
        for epoch in range(1, self.epochs_per_pass + 1):
            count = sum(map(len, self.shards_of_epoch(epoch)))
            if count < self.world_size * self.places:
                raise ValueError(
                    f"{count} shards in epoch {epoch} for {self.world_size} processes "
                    f"with {self.places} readers (num_workers) each: write smaller "
                    "shards (--shard_size), lower num_workers or raise hours_per_epoch"
                )
        if self.batch_sizes is not None:
            self.bounds: List[float] = sorted(self.batch_sizes)
        else:
            self.bounds = self._estimate_bounds()
        logging.info(
            f"streaming {len(self.corpora)} corpora, "
            f"{sum(len(corpus.shards) for corpus in self.corpora)} shards; buckets up "
            f"to {self.bounds} LLM positions"
        )

    def shards_of_epoch(self, epoch: int) -> List[List[Shard]]:
        """List the shards of an epoch, of all places of all ranks."""
        return shards_of_epoch(self.corpora, epoch, self.epochs_per_pass, self.seed)

    def build_iter(self, epoch: int, shuffle: Optional[bool] = None):
        """Build the iterator of an epoch (from 1)."""
        return StreamingIterator(self, epoch)

    def cuts(self, epoch: int, place: int) -> CutSet:
        """Mix the utterances that a place (from 0, of this rank) reads."""
        share = deal(
            self.shards_of_epoch(epoch),
            self.rank * self.places + place,
            self.world_size * self.places,
        )
        seed = f"{self.seed} {epoch} {self.rank} {place}"
        return self._mix(share, seed, self.make_batch.bad)

    def _mix(
        self, shards: List[List[Shard]], seed: str, bad: Optional[BadUtterances]
    ) -> CutSet:
        shards = [of_corpus for of_corpus in shards if of_corpus]
        streams = [
            CutSet(Utterances(s, self.length, bad, self.speed_factors, f"{seed} {n}"))
            for n, s in enumerate(shards)
        ]
        if len(streams) == 1:
            return streams[0]
        # by their sizes: they end together
        weights = [len(of_corpus) for of_corpus in shards]
        return CutSet.mux(*streams, weights=weights, seed=_number(seed))

    def _estimate_bounds(self) -> List[float]:
        # The same in all ranks and after a resumption; metadata alone is read.
        shards = [
            [{"cuts": shard["cuts"]} for shard in of_corpus]
            for of_corpus in self.shards_of_epoch(1)
        ]
        lengths = []
        for cut in self._mix(shards, f"{self.seed} bounds", self.make_batch.bad):
            lengths.append(cut)
            if len(lengths) == NUM_FOR_BUCKETS:
                break
        if not lengths:
            raise ValueError("no utterance of the shards can be used")
        # One bucket for each length there is, since lengths are multiples already:
        # utterances of equal mass in each, lhotse's way, would leave the short ones,
        # which are few, in one wide bucket with much padding.
        distinct = sorted({cut.num_tokens for cut in lengths})
        if len(distinct) <= self.num_buckets:
            return distinct
        if self.num_buckets == 1:
            return []
        bounds = estimate_duration_buckets(lengths, self.num_buckets, self.constraint())
        return sorted({int(bound) for bound in bounds})

    def constraint(self) -> SamplingConstraint:
        """Make what says when a batch is full."""
        if self.batch_sizes is not None:
            sizes = [self.batch_sizes[bound] for bound in self.bounds]
            return BatchSizeConstraint(self.bounds, sizes)
        return SequenceConstraint(max_tokens=self.max_tokens)

    def sampler(self, epoch: int, place: int) -> DynamicBucketingSampler:
        """Make the sampler of a place; it gives the cuts of a batch."""
        return DynamicBucketingSampler(
            self.cuts(epoch, place),
            constraint=self.constraint(),
            duration_bins=self.bounds,
            shuffle=True,
            buffer_size=self.buffer_size,
            # The shards are dealt out already: a sampler knows of no other. The ranks
            # choose the same bucket at the same time, so that none waits for another.
            # (Without sync_buckets lhotse 1.33 may end while buckets hold utterances.)
            world_size=1,
            rank=0,
            sync_buckets=True,
            seed=_number(f"{self.seed} {epoch} {self.rank} {place}"),
        )

    def settings(self, epoch: int) -> str:
        """Digest all that the batches of an epoch depend on."""
        parts = (
            *(self.shards_of_epoch(epoch), self.constraint(), self.bounds),
            *(self.buffer_size, self.speed_factors, self.num_iters_per_epoch),
            *(self.num_workers, self.world_size, self.seed, epoch),
        )
        return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


class StreamingIterator:
    """The batches of an epoch.

    For a resumption inside the epoch, `state_dict` gives the position after the batch
    given last (numbers and strings only), and `load_state_dict` goes there before the
    iteration begins. What was given before is then read over, without decoding the
    audio. The batches that follow are the same as without the interruption.

    Args:
        factory: The options.
        epoch: From 1.
    """

    def __init__(self, factory: StreamingIterFactory, epoch: int):
        self.factory = factory
        self.epoch = epoch
        self.settings = factory.settings(epoch)
        self.given = [0] * factory.places
        self.next_place = 0
        # Set by who starts the training, e.g. for signals.
        self.worker_init_fn: Optional[Callable[[int], None]] = None

    def state_dict(self) -> Dict[str, Any]:
        """Give the position after the batch given last."""
        return {
            "settings": self.settings,
            "given": list(self.given),
            "next_place": self.next_place,
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go to a position.

        Raises:
            ValueError: It is one of another epoch, or of other options or shards.
        """
        if state["settings"] != self.settings:
            raise ValueError(
                "the interrupted epoch had other shards, streaming_conf, seed, number "
                "of processes or num_workers: take the same, or remove its step "
                "checkpoints to start the epoch again"
            )
        self.given = list(state["given"])
        self.next_place = state["next_place"]

    def __iter__(self) -> Iterator[Batch]:
        factory, places = self.factory, self.factory.places
        if self._is_full():  # it was stopped behind its last batch
            return
        loader = torch.utils.data.DataLoader(
            _Places(self),
            batch_size=None,
            num_workers=factory.num_workers,
            pin_memory=factory.pin_memory,
            worker_init_fn=self.worker_init_fn,
            generator=torch.Generator(),  # the global random numbers stay as they are
        )
        ended = set()
        for place, batch in loader:
            if batch == NOT_YET:
                continue
            self.next_place = (place + 1) % places
            if batch is None:
                ended.add(place)
                if len(ended) == places:
                    return
                continue
            self.given[place] += 1
            yield batch
            if self._is_full():
                return

    def _is_full(self) -> bool:
        most = self.factory.num_iters_per_epoch
        return bool(most) and sum(self.given) >= most


class _Places(torch.utils.data.IterableDataset):
    """The batches of the places of one rank, in turn: one of each.

    A place that has no more gives None for ever, so that the turn, and with it the
    order of the batches, never depends on which process ended when.
    """

    def __init__(self, iterator: StreamingIterator):
        self.factory, self.epoch = iterator.factory, iterator.epoch
        self.given, self.first = list(iterator.given), iterator.next_place

    def __iter__(self) -> Iterator[Tuple[int, Any]]:
        worker = torch.utils.data.get_worker_info()
        place = 0 if worker is None else worker.id
        set_current_audio_backend(LibsndfileBackend())  # the fastest of lhotse's
        if place < self.first:  # its turn was before the interruption
            yield place, NOT_YET
        for n, cuts in enumerate(self.factory.sampler(self.epoch, place)):
            if n >= self.given[place]:
                seed = (
                    f"{self.factory.seed} {self.epoch} {self.factory.rank} {place} {n}"
                )
                yield place, self.factory.make_batch(cuts, random.Random(seed))
        while True:
            yield place, None


def build_factory(
    conf: Dict[str, Any],
    preprocess: DUSPreprocessor,
    collate: Callable,
    num_positions: Callable[[int], int],
    prompt: str,
    fs: int,
    num_workers: int,
    distributed: bool,
    seed: int,
    pin_memory: bool,
) -> StreamingIterFactory:
    """Build the factory from the task's options.

    Args:
        conf: `streaming_conf`, complete.
        preprocess: ESPnet's preprocessing.
        collate: ESPnet's collation.
        num_positions: Gives the speech positions of a number of samples.
        prompt: Between speech and transcript.
        fs: Sampling rate (Hz).
        num_workers: As ESPnet's option.
        distributed: Whether torch.distributed says which rank this is.
        seed: For all that is random.
        pin_memory: Whether batches are read into pinned memory.

    Raises:
        ValueError: An option is out of range, or shards are missing.
    """
    batch_sizes = read_batch_sizes(conf["batch_sizes"])
    speed_factors = [parse_speed(factor) for factor in conf["speed_factors"]]
    for name in ("max_tokens", "num_buckets", "buffer_size"):
        if not isinstance(conf[name], int) or conf[name] < 1:
            raise ValueError(
                f"streaming_conf: {name}: expected a number from 1 on, got {conf[name]}"
            )
    if conf["shards"] is None:
        raise ValueError("streaming_conf: shards: name a directory of shards")
    weights = read_weights(conf["shards"])
    epochs_per_pass = 1
    if conf["hours_per_epoch"] is not None:
        hours = sum(w * read_info(d).seconds / 3600 for d, w in weights.items())
        epochs_per_pass = max(round(hours / conf["hours_per_epoch"]), 1)
        logging.info(f"{hours:,.1f} h in {epochs_per_pass} epoch(s)")
    augment = {name: conf[name] for name in ("noise", "noise_prob", "noise_snr")}
    augment.update(rir=conf["rir"], rir_prob=conf["rir_prob"])
    length = SequenceLength(
        preprocess,
        num_positions,
        len(preprocess.tokenizer.prompt_tokens(prompt)),
        LENGTH_MULTIPLE,
        longest=max(batch_sizes) if batch_sizes else conf["max_tokens"],
        max_duration=conf["max_duration"],
        min_text_ratio=conf["min_text_ratio"],
        max_text_ratio=conf["max_text_ratio"],
    )
    bad = preprocess.bad_utterances
    return StreamingIterFactory(
        corpora=[Corpus(d, weight, list_shards(d)) for d, weight in weights.items()],
        length=length,
        make_batch=BatchMaker(preprocess, collate, Augmentation(fs, **augment), bad),
        max_tokens=conf["max_tokens"],
        batch_sizes=batch_sizes,
        num_buckets=conf["num_buckets"],
        buffer_size=conf["buffer_size"],
        epochs_per_pass=epochs_per_pass,
        speed_factors=speed_factors,
        num_iters_per_epoch=conf["num_iters_per_epoch"],
        num_workers=num_workers,
        rank=torch.distributed.get_rank() if distributed else 0,
        world_size=torch.distributed.get_world_size() if distributed else 1,
        seed=seed,
        pin_memory=pin_memory,
    )


def _number(seed: str) -> int:
    digest = hashlib.blake2b(seed.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
