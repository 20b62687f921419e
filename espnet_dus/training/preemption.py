"""Stopping on request: a scheduler's signal becomes a checkpoint and exit code 75.

Schedulers announce the end of a job by SIGTERM or, if asked to (`#SBATCH --signal`), by
SIGUSR1. The current step is finished, the state is saved, and the process exits with
`EXIT_CODE`: stage 11 then starts it again, and it resumes.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from typing import Callable, Iterator, List, Optional

import torch

from espnet_dus.training.distributed import gather_numbers

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Notes that one of `SIGNALS` came.

    Attributes:
        received: The name of the signal, or None.
    """

    received: Optional[str] = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note signals in the block."""

        def note(number, frame):
            self.received = signal.Signals(number).name

        self.received = None
        with _handled_by(note):
            yield

    def any_process(self) -> bool:
        """Return whether a process got a signal; all processes call this together.

        The signal reaches them at different times, but all must stop after one step.
        """
        return bool(gather_numbers([self.received is not None]).any())


def exit_to_be_restarted(what: str) -> None:
    """Exit with `EXIT_CODE`.

    Args:
        what: What was done before, for the log.
    """
    logging.warning(f"{what}; stopping with exit code {EXIT_CODE}: start me again")
    sys.exit(EXIT_CODE)


def ignore_signals() -> None:
    """Leave `SIGNALS` to the main process: for the processes of a data loader.

    A scheduler signals all processes of a job. A loader that died of it would take the
    training down before its step is finished.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stoppable() -> Iterator[None]:
    """Make a training command exit with `EXIT_CODE`, whenever the signal comes.

    Before the training has begun there is nothing to save. The parent of one process
    per GPU, which ESPnet spawns, passes the signal on to them, and exits as they do.
    """
    sent: List[int] = []

    def stop(number, frame):
        sent.append(number)
        # Others, such as joblib's idle workers, do not train.
        children = multiprocessing.active_children()
        trainings = [child for child in children if isinstance(child, SpawnProcess)]
        for training in trainings:
            os.kill(training.pid, number)
        if not trainings:
            exit_to_be_restarted(f"{signal.Signals(number).name} before the training")

    try:
        with _handled_by(stop):
            yield
    except torch.multiprocessing.ProcessExitedException as error:
        # Those that had not begun to train die of the signal itself.
        if error.exit_code not in (EXIT_CODE, *(-number for number in sent)):
            raise
        sys.exit(EXIT_CODE)


@contextmanager
def _handled_by(handler: Callable) -> Iterator[None]:
    """Set the handler of `SIGNALS` in the block; only a main thread may do so."""
    is_main = threading.current_thread() is threading.main_thread()
    previous = {n: signal.signal(n, handler) for n in SIGNALS if is_main}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
