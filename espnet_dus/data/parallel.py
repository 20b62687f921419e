"""Many blocks of work in several processes, with progress."""

import logging
import multiprocessing
import os
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from itertools import islice
from typing import Any, Callable, Iterable, Iterator, Optional

SECONDS_BETWEEN_REPORTS = 10


def run_blocks(work: Callable, blocks: Iterable, nj: int) -> Iterator[Any]:
    """Apply a function to blocks of work, in any order.

    Args:
        work: The function; it and the blocks must pickle if `nj` is more than 1.
        blocks: They may be many: few more are taken than are being worked on.
        nj: Number of processes.

    Yields:
        What `work` returns, as it is finished.

    Raises:
        RuntimeError: A process was killed.
    """
    if nj == 1:
        yield from map(work, blocks)
        return
    # Not fork: torch and libsndfile keep threads and locks that a fork would break.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(nj, mp_context=context, initializer=_start_worker)
    blocks = iter(blocks)
    try:
        running = {pool.submit(work, block) for block in islice(blocks, 2 * nj)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for block in islice(blocks, len(finished)):
                running.add(pool.submit(work, block))
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process was killed, most likely for want of memory; run again with a "
            "smaller nj: what is finished stays"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # Each of nj processes would start a thread per core for its small matrices.
    os.environ["OMP_NUM_THREADS"] = "1"
    # When the main process is killed, the pool's processes would wait for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


class Progress:
    """Say now and then how far the work is and how long it will take.

    Args:
        what: What is being made.
        total: Number of utterances; None: not known.
    """

    def __init__(self, what: str, total: Optional[int]):
        self.what, self.total = what, total
        self.count = self.bad = 0
        self.start = self.reported = time.monotonic()

    def add(self, good: int, bad: int) -> None:
        """Count finished utterances, and faulty ones."""
        self.count += good + bad
        self.bad += bad
        now = time.monotonic()
        if now - self.reported < SECONDS_BETWEEN_REPORTS and self.count != self.total:
            return
        self.reported = now
        rate = self.count / max(now - self.start, 1e-3)
        of_all = left = ""
        if self.total is not None:
            of_all = f" of {self.total}"
            seconds = round((self.total - self.count) / max(rate, 1e-3))
            left = f", {timedelta(seconds=seconds)} left"
        logging.info(
            f"{self.what}: {self.count}{of_all} utterances, {self.bad} bad, "
            f"{rate:.0f}/s{left}"
        )
