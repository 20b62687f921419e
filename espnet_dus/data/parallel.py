"""Many blocks of work in several processes, and utterances in groups."""

import os
import threading
import time
import traceback
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, Callable, Iterable, Iterator, List, Optional, Tuple, TypeVar

import joblib
import numpy as np

T = TypeVar("T")

GROUP_SECONDS = 3600  # of audio in memory at a time, from which batches are made


def run_blocks(work: Callable, blocks: Iterable, nj: int) -> Iterator[Any]:
    """Apply a function to blocks of work.

    Args:
        work: The function; it and the blocks must pickle if `nj` is more than 1.
        blocks: Read lazily, a few ahead of the work.
        nj: Number of processes.

    Yields:
        The results, in the order of the blocks.

    Raises:
        RuntimeError: A process was killed.
        Exception: The first error of the work. The blocks that other processes have
            begun are finished before it, so that no temporary file is left.
    """
    ended = False

    def until_the_end():
        for block in blocks:
            if ended:
                return
            yield joblib.delayed(_attempt)(work, block)

    # One thread in each process: nj times all cores would get in each other's way.
    end = dict(initializer=_end_with_parent, initargs=(os.getpid(),))
    with joblib.parallel_config("loky", inner_max_num_threads=1, **end):
        parallel = joblib.Parallel(nj, return_as="generator", batch_size=1)
    results = parallel(until_the_end())
    try:
        for result, error in results:
            if error is not None:
                raise error
            yield result
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process was killed, most likely because memory ran out; run again with "
            "a smaller nj: finished work is kept"
        ) from error
    finally:
        ended = True
        with suppress(BrokenProcessPool):  # left alone, joblib kills working processes
            for _ in results:
                pass


def _attempt(work: Callable, block: Any) -> Tuple[Any, Optional[Exception]]:
    """Return what the work returns and None, or None and its error."""
    try:
        return work(block), None
    except Exception as error:
        error.add_note(traceback.format_exc())  # a pickled error has no traceback
        return None, error


def _end_with_parent(parent: int) -> None:
    """End this process soon after its parent: a killed one leaves blocks waiting."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def groups(
    waveforms: Iterable[Tuple[T, np.ndarray]], fs: int
) -> Iterator[List[Tuple[T, np.ndarray]]]:
    """Gather utterances, about an hour of audio at a time.

    Args:
        waveforms: Whatever describes an utterance, and its samples.
        fs: Sampling rate in Hz.
    """
    group: List[Tuple[T, np.ndarray]] = []
    length = 0
    for utterance, samples in waveforms:
        group.append((utterance, samples))
        length += len(samples)
        if length >= GROUP_SECONDS * fs:
            yield group
            group, length = [], 0
    if group:
        yield group
