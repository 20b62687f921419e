"""Many blocks of work in several processes."""

import multiprocessing
import os
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Callable, Iterable, Iterator


def run_blocks(work: Callable, blocks: Iterable, nj: int) -> Iterator[Any]:
    """Apply a function to blocks of work, in any order.

    Args:
        work: The function; it and the blocks must pickle if `nj` is more than 1.
        blocks: Read lazily, a few ahead of the work.
        nj: Number of processes.

    Yields:
        The results, in the order in which they are finished.

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
            "a process was killed, most likely because memory ran out; run again with "
            "a smaller nj: finished work is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # Each of nj processes would start a thread per core for its small matrices.
    os.environ["OMP_NUM_THREADS"] = "1"
    # When the main process is killed, the pool's processes would wait forever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
