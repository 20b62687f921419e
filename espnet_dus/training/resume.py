"""Exact resume inside an epoch: the state between two steps, taken and restored.

ESPnet's Trainer saves model, optimizers, schedulers, scaler and reporter at the end of
an epoch, in `checkpoint.pth`. A state inside an epoch also holds the position in the
data, the states of the random number generators and the reporter's notes so far.
"""

import dataclasses
import logging
import random
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

import numpy as np
import torch
from espnet2.train.reporter import Average, SubReporter, WeightedAverage

from espnet_dus.data.settings import check_settings
from espnet_dus.training.preemption import ignore_signals
from espnet_dus.training.step_checkpoint import StepCheckpoints

Batch = Tuple[List[str], Dict[str, Any]]


# -- position in the data --------------------------------------------------------------


class ResumableBatches:
    """The batches of an epoch that an interrupted process has not done.

    Empty batches (all utterances bad) are not yielded, but counted.

    Args:
        iterator: Built by an iterator factory of ESPnet or of ours. An iterable with
            `state_dict` and `load_state_dict` moves to its position itself. Any other
            must yield the same batches each time it is built; those already done are
            skipped.
        settings: What the batches depend on, as text by name; an epoch is resumed with
            the same only.

    Attributes:
        done: Number of batches given, those of an interrupted process included.
        utterances: Number of utterances in them.
    """

    def __init__(
        self, iterator: Iterable[Batch], settings: Optional[Dict[str, str]] = None
    ):
        self.iterator = iterator
        self.settings = dict(settings or {})
        self.done = self.utterances = 0
        self._skipped = 0
        self._random_state: Optional[Dict[str, Any]] = None

    def total(self) -> Optional[int]:
        """Return the number of all batches of the epoch; None: not known."""
        try:
            return len(self.iterator)
        except TypeError:
            return None

    def state_dict(self) -> Dict[str, Any]:
        """Return the position after the batch given last."""
        state = {
            "settings": self.settings,
            "done": self.done,
            "utterances": self.utterances,
            "random": random_state(),
        }
        if hasattr(self.iterator, "state_dict"):
            state["iterator"] = self.iterator.state_dict()
        return state

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Move to a position, before the iteration begins.

        Raises:
            ValueError: It is one of other settings, which the message names.
        """
        check_settings(state.get("settings", {}), self.settings)
        self.done = state["done"]
        self.utterances = state.get("utterances", 0)
        self._random_state = state["random"]
        if "iterator" in state:
            self.iterator.load_state_dict(state["iterator"])
        else:
            self._skipped = self.done

    def __iter__(self) -> Iterator[Batch]:
        batches = self._unfinished()
        # After the iterator is built: that draws random numbers, as it did before.
        if self._random_state is not None:
            restore_random_state(self._random_state)
        for batch in batches:
            self.done += 1
            self.utterances += len(batch[0])
            if batch[0]:
                yield batch

    def _unfinished(self) -> Iterator[Batch]:
        loader, skipped = self.iterator, self._skipped
        leave_signals_to_the_training(loader)
        if not isinstance(loader, torch.utils.data.DataLoader):
            batches = iter(loader)
            for n in range(skipped):
                if n % 1000 == 0:
                    logging.info(f"skipping batches already done: {n} of {skipped}")
                next(batches)
            return batches
        if skipped:  # ESPnet's batches are a list of ids: those done need not be read
            loader = torch.utils.data.DataLoader(
                dataset=loader.dataset,
                batch_sampler=list(loader.batch_sampler)[skipped:],
                num_workers=loader.num_workers,
                collate_fn=loader.collate_fn,
                pin_memory=loader.pin_memory,
                worker_init_fn=loader.worker_init_fn,
            )
        return iter(loader)


def leave_signals_to_the_training(loader: Iterable[Batch]) -> None:
    """Make the worker processes of a data loader, if it has any, ignore signals."""
    if hasattr(loader, "worker_init_fn"):
        loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn)


def _init_worker(iterators_own: Optional[Callable], worker_id: int) -> None:
    if iterators_own is not None:
        iterators_own(worker_id)
    ignore_signals()


# -- all of it -------------------------------------------------------------------------


@dataclasses.dataclass
class Epoch:
    """The current epoch: all that must survive an interruption.

    Attributes:
        model: The `ESPnetDUSModel`, without DDP around it.
        parts: Optimizers, schedulers and the scaler that there are.
        reporter: ESPnet's, of this epoch.
        batches: Of this epoch.
        checkpoints: Where its states are saved.
    """

    model: torch.nn.Module
    parts: List[Any]
    reporter: SubReporter
    batches: ResumableBatches
    checkpoints: StepCheckpoints

    def save(self) -> Path:
        """Save the state between two updates; return its directory."""
        shared = {
            "model": self.model.state_dict(),
            "parts": [part.state_dict() for part in self.parts],
        }
        own = {
            "batches": self.batches.state_dict(),
            "reporter": reporter_state(self.reporter),
        }
        epoch, count = self.reporter.get_epoch(), self.reporter.count
        return self.checkpoints.save(epoch, count, shared, own)

    def restore(self) -> None:
        """Resume from the newest state of this epoch, if there is one."""
        loaded = self.checkpoints.load(self.reporter.get_epoch())
        if loaded is None:
            return
        shared, own = loaded
        self.model.load_state_dict(shared["model"])
        for part, state in zip(self.parts, shared["parts"]):
            part.load_state_dict(state)
        self.batches.load_state_dict(own["batches"])
        restore_reporter(self.reporter, own["reporter"])


# -- random numbers, reporter ----------------------------------------------------------


def random_state() -> Dict[str, Any]:
    """Return the states of all random number generators of this process."""
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Dict[str, Any]) -> None:
    """Set all random number generators of this process."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def reporter_state(reporter: SubReporter) -> Dict[str, Any]:
    """Return what ESPnet's reporter has noted in this epoch.

    Values, and weights where there are any, are stored as columns: they are many.
    """
    columns = {}
    for name, values in reporter.stats.items():
        columns[name] = [torch.tensor([v.value for v in values], dtype=torch.float64)]
        if isinstance(values[0], WeightedAverage):
            weights = [v.weight for v in values]
            columns[name].append(torch.tensor(weights, dtype=torch.float64))
    return {
        "columns": columns,
        "count": reporter.count,
        "total_count": reporter.total_count,
        "seconds": time.perf_counter() - reporter.start_time,
    }


def restore_reporter(reporter: SubReporter, state: Dict[str, Any]) -> None:
    """Restore what ESPnet's reporter had noted."""
    for name, columns in state["columns"].items():
        kind = Average if len(columns) == 1 else WeightedAverage
        rows = zip(*(column.tolist() for column in columns))
        reporter.stats[name] = [kind(*row) for row in rows]
    reporter.count = state["count"]
    reporter.total_count = state["total_count"]
    reporter.start_time = time.perf_counter() - state["seconds"]
