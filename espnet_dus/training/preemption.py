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
from typing import Callable, Iterator, List, Optional

import torch

from espnet_dus.training.distributed import gather_numbers

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Notes that one of `SIGNALS` came, while it is entered as a context.

    Attributes:
        received: The name of the signal, or None.
    """

    def __init__(self):
        self.received: Optional[str] = None

    def __enter__(self) -> "StopSignals":
        self.received = None
        self._previous = _set_handlers(self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        self.received = signal.Signals(number).name

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
    per GPU passes the signal on to them, and exits as they do.
    """
    sent: List[int] = []

    def stop(number, frame):
        sent.append(number)
        children = multiprocessing.active_children()
        for child in children:
            os.kill(child.pid, number)
        if not children:
            exit_to_be_restarted(f"{signal.Signals(number).name} before the training")

    previous = _set_handlers(stop)
    try:
        yield
    except torch.multiprocessing.ProcessExitedException as error:
        # Those that had not begun to train die of the signal itself.
        if error.exit_code not in (EXIT_CODE, *(-number for number in sent)):
            raise
        sys.exit(EXIT_CODE)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _set_handlers(handler: Callable) -> dict:
    """Set handlers and return the previous ones; only a main thread may do so."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in SIGNALS}
