"""Training on more data than fits in memory: shards that are read from start to end.

Each worker process of each rank's data loader is a reader. A reader reads its own part
of the data (`mix`), gathers batches of similar length (`batching`), and decodes their
audio (`cut_stream`). All of it follows from the seed, the epoch and the reader, so the
state of an epoch is only how many batches each reader has given.
"""

import hashlib
import logging
import math
import random
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from lhotse import CutSet
from lhotse.audio.backend import LibsndfileBackend, set_current_audio_backend
from lhotse.cut import Cut

from espnet_dus.data.data_dir import parse_speed
from espnet_dus.data.settings import check_settings
from espnet_dus.data.shards.batching import batches_by_length
from espnet_dus.data.shards.config import StreamingConfig
from espnet_dus.data.shards.cut_stream import (
    Batch,
    BatchMaker,
    SequenceLength,
    utterances,
)
from espnet_dus.data.shards.mix import Corpus, Part, deal

NOT_YET = "not yet"
NUM_MEASURED = 5000  # utterances that the number of batches is estimated from


@dataclass
class StreamingIterFactory(AbsIterFactory):
    """Builds the iterator of each epoch (ESPnet's `--iterator_type task`).

    Attributes:
        config: The options.
        corpora: What is read, with weights.
        length: Measures an utterance.
        make_batch: Turns cuts into a batch.
        batch_sizes: Content of the option of that name.
        num_workers: Worker processes of each rank; 0: the training's own process reads.
        rank: Of this process.
        world_size: Number of processes that train.
        seed: For all that is random.
        pin_memory: Whether batches are read into pinned memory.
        accum_grad: Batches of each process in an update.
        num_batches: Expected number of batches of each process in an epoch.
        hours: Audio in an epoch.

    Raises:
        ValueError: No utterance of the shards can be used.
    """

    config: StreamingConfig
    corpora: Sequence[Corpus]
    length: SequenceLength
    make_batch: BatchMaker
    batch_sizes: Optional[Dict[int, int]]
    num_workers: int
    rank: int
    world_size: int
    seed: int
    pin_memory: bool = False

    def __post_init__(self):
        self.readers = max(self.num_workers, 1)
        self.speed_factors = [parse_speed(f) for f in self.config.speed_factors]
        hours = sum(c.weight * c.seconds for c in self.corpora) / 3600
        wanted = self.config.hours_per_epoch
        self.epochs_per_pass = 1 if wanted is None else max(round(hours / wanted), 1)
        self.hours = hours / self.epochs_per_pass
        self._measure()

    def _measure(self) -> None:
        """Derive accumulation and the number of batches from some utterances."""
        parts = deal(self.corpora, 1, 1, self.seed, 0, 1)
        metadata = [
            [part._replace(shard={"cuts": part.shard["cuts"]}) for part in of_corpus]
            for of_corpus in parts
        ]
        cuts = self._mix(metadata, f"{self.seed} measured")
        lengths = [cut.num_tokens for cut in islice(cuts, NUM_MEASURED)]
        if not lengths:
            raise ValueError(
                "no utterance of the shards can be used; the warnings above say why"
            )
        self.mean_length = sum(lengths) / len(lengths)
        self.accum_grad, self.share = 1, 1.0
        if self.config.tokens_per_update is not None:
            full = sum(lengths) / sum(1 / self._most(n) for n in lengths)
            wanted = self.config.tokens_per_update
            if wanted < self.world_size * self.mean_length:
                raise ValueError(
                    f"streaming_conf: tokens_per_update: {wanted} LLM positions are "
                    f"less than an utterance, {self.mean_length:.0f} on average, for "
                    f"each of {self.world_size} process(es); use fewer of them, or "
                    "raise it"
                )
            ratio = wanted / (self.world_size * full)
            self.accum_grad = math.ceil(ratio - 1e-3)
            self.share = min(ratio / self.accum_grad, 1.0)
        batches = batches_by_length(
            lengths, lambda length: length, self.capacity, self.config.buffer_size
        )
        per_utterance = sum(1 for _ in batches) / len(lengths)
        number = sum(c.weight * c.num_utterances for c in self.corpora)
        number /= self.epochs_per_pass
        self.num_batches = math.ceil(number * per_utterance / self.world_size)
        positions = number * self.mean_length / self.num_batches * self.accum_grad
        logging.info(
            f"stream: an epoch has {self.hours:,.1f} h, {number:,.0f} utterances "
            f"and about {self.num_batches:,} batches on each of {self.world_size} "
            f"process(es); an update has {self.accum_grad} of them, together about "
            f"{positions:,.0f} LLM positions"
        )

    def _most(self, length: int) -> int:
        """Return how many utterances fit into memory by the longest's LLM positions."""
        if self.batch_sizes is None:
            return max(self.config.max_tokens // length, 1)
        return self.batch_sizes[min(n for n in self.batch_sizes if n >= length)]

    def capacity(self, length: int) -> int:
        """Return how many utterances a batch holds by the longest's LLM positions."""
        return max(int(self._most(length) * self.share), 1)

    def build_iter(self, epoch: int, shuffle: Optional[bool] = None):
        """Build the iterator of an epoch (from 1)."""
        return StreamingIterator(self, epoch)

    def cuts(self, epoch: int, reader: int) -> Iterator[Cut]:
        """Return the utterances that a reader (from 0, of this rank) reads."""
        number, count = self._number(reader), self.world_size * self.readers
        parts = deal(
            self.corpora, epoch, self.epochs_per_pass, self.seed, number, count
        )
        return self._mix(parts, f"{self.seed} {epoch} {number}")

    def _number(self, reader: int) -> int:
        return reader * self.world_size + self.rank

    def _mix(self, parts: List[List[Part]], seed: str) -> Iterator[Cut]:
        streams, weights = [], []
        for n, (corpus, of_corpus) in enumerate(zip(self.corpora, parts)):
            if of_corpus:
                streams.append(
                    utterances(
                        of_corpus, self.length, self.speed_factors, f"{seed} {n}"
                    )
                )
                # by their numbers of utterances, so that they end together
                share = sum(part.end - part.begin for part in of_corpus)
                weights.append(share * corpus.num_utterances / len(corpus.shards))
        if len(streams) < 2:
            return iter(*streams or [()])
        number = int(_digest(seed)[:8], 16)
        return iter(CutSet.mux(*streams, weights=weights, seed=number))

    def batches(self, epoch: int, reader: int) -> Iterator[List[Cut]]:
        """Return the batches of a reader (from 0, of this rank), not yet decoded."""
        return batches_by_length(
            self.cuts(epoch, reader),
            lambda cut: cut.num_tokens,
            self.capacity,
            self.config.buffer_size,
            self._number(reader),
            random.Random(f"{self.seed} {epoch}").random(),
        )

    def settings(self, epoch: int) -> Dict[str, str]:
        """Return all that the batches of an epoch depend on, as text by name."""
        options = {f"streaming_conf {k}": v for k, v in asdict(self.config).items()}
        options |= {
            "streaming_conf batch_sizes": self.batch_sizes,
            "streaming_conf shards": _digest(self.corpora),
            "epoch": epoch,
            "seed": self.seed,
            "num_workers": self.num_workers,
            "number of processes": self.world_size,
            "mean length (prompt, cleaner, frontend)": self.mean_length,
        }
        return {name: repr(value) for name, value in options.items()}


class StreamingIterator:
    """The batches of an epoch.

    To resume inside the epoch, `state_dict` returns the position after the batch given
    last (numbers and strings only), and `load_state_dict` moves there before the
    iteration begins. What was given before is then read again, without decoding the
    audio. The batches that follow are the same as without the interruption.

    Args:
        factory: The options.
        epoch: From 1.
    """

    def __init__(self, factory: StreamingIterFactory, epoch: int):
        self.factory = factory
        self.epoch = epoch
        self.settings = factory.settings(epoch)
        self.given = [0] * factory.readers
        self.next_reader = 0
        # Set by the training, e.g. for signals.
        self.worker_init_fn: Optional[Callable[[int], None]] = None

    def __len__(self) -> int:
        """Return the expected number of batches."""
        return self.factory.num_batches

    def state_dict(self) -> Dict[str, Any]:
        """Return the position after the batch given last."""
        return {
            "settings": self.settings,
            "given": list(self.given),
            "next_reader": self.next_reader,
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Move to a position.

        Raises:
            ValueError: It is one of other options, which the message names.
        """
        check_settings(state["settings"], self.settings)
        self.given = list(state["given"])
        self.next_reader = state["next_reader"]

    def __iter__(self) -> Iterator[Batch]:
        factory, readers = self.factory, self.factory.readers
        loader = torch.utils.data.DataLoader(
            _Readers(self),
            batch_size=None,
            num_workers=factory.num_workers,
            pin_memory=factory.pin_memory,
            worker_init_fn=self.worker_init_fn,
            generator=torch.Generator(),  # the global random numbers stay as they are
        )
        ended = set()
        for reader, batch in loader:
            if batch == NOT_YET:
                continue
            self.next_reader = (reader + 1) % readers
            if batch is None:
                ended.add(reader)
                if len(ended) == readers:
                    return
                continue
            self.given[reader] += 1
            yield batch


class _Readers(torch.utils.data.IterableDataset):
    """The batches of the readers of one rank, one of each in turn.

    An exhausted reader keeps yielding None, so the round-robin, and with it the batch
    order, does not depend on which reader ends first.
    """

    def __init__(self, iterator: StreamingIterator):
        self.factory, self.epoch = iterator.factory, iterator.epoch
        self.given, self.first = list(iterator.given), iterator.next_reader

    def __iter__(self) -> Iterator[Tuple[int, Any]]:
        worker = torch.utils.data.get_worker_info()
        reader = 0 if worker is None else worker.id
        set_current_audio_backend(LibsndfileBackend())  # the fastest of lhotse's
        if reader < self.first:  # its turn was before the interruption
            yield reader, NOT_YET
        factory, epoch = self.factory, self.epoch
        for n, cuts in enumerate(factory.batches(epoch, reader)):
            if n >= self.given[reader]:
                seed = f"{factory.seed} {epoch} {factory.rank} {reader} {n}"
                batch = factory.make_batch(CutSet.from_cuts(cuts), random.Random(seed))
                yield reader, batch
        while True:
            yield reader, None


def _digest(content: Any) -> str:
    return hashlib.blake2b(repr(content).encode(), digest_size=8).hexdigest()
