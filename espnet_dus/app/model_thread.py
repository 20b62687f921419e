"""The thread that runs a server's model.

    requests -> segments (their own threads) -> batches of all requests (one thread)

Segments that arrive while the model is busy wait, and the next batch takes those of
several requests together.
"""

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Deque, List, Tuple

import numpy as np

from espnet_dus.search.long_audio import batches
from espnet_dus.search.result import Hypothesis
from espnet_dus.search.segmentation import Segment
from espnet_dus.search.speech2text import Speech2Text


class ModelThread:
    """A model that many threads use: calls run one after the other, batched.

    Args:
        speech2text: The model.
        batch_seconds: Seconds of segments in a batch, padding included.
    """

    def __init__(self, speech2text: Speech2Text, batch_seconds: float = 60.0):
        self.speech2text = speech2text
        self.batch_seconds = batch_seconds
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._waiting: Deque[Tuple[Segment, Future]] = deque()
        self._lock = threading.Lock()

    def submit(self, function: Callable, *args: Any) -> Future:
        """Call a function that uses the model, when the model is free."""
        return self._executor.submit(function, *args)

    def transcribe(self, waveforms: List[np.ndarray]) -> List[Hypothesis]:
        """Transcribe waveforms (samples,), in batches with those of other threads.

        Raises:
            Exception: What the model raises for one of them; the others of its batch
                are transcribed.
        """
        jobs = []
        for samples in waveforms:
            segment = Segment(0.0, len(samples) / self.speech2text.fs, samples)
            jobs.append((segment, Future()))
        with self._lock:
            self._waiting.extend(jobs)
        for _ in jobs:  # a batch takes at least one
            self._executor.submit(self._run_batch)
        return [future.result() for _, future in jobs]

    def _run_batch(self) -> None:
        with self._lock:
            waiting = (segment for segment, _ in self._waiting)
            size = len(next(batches(waiting, self.batch_seconds), []))
            jobs = [self._waiting.popleft() for _ in range(size)]
        if not jobs:
            return
        try:
            found = self.speech2text([segment.samples for segment, _ in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0][1].set_exception(error)
                return
            for segment, future in jobs:
                try:
                    future.set_result(self.speech2text([segment.samples])[0])
                except Exception as own:
                    future.set_exception(own)
            return
        for (_, future), hypothesis in zip(jobs, found):
            future.set_result(hypothesis)
