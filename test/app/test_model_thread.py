"""The thread of the server's model: batches of all requests, errors of each."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from espnet_dus.app.model_thread import ModelThread


class Doubler:
    """A model of 1 Hz that doubles the first sample; negative ones are errors."""

    fs = 1

    def __init__(self):
        self.free = threading.Event()
        self.batches = []

    def __call__(self, speech):
        self.free.wait(10)
        self.batches.append([int(samples[0]) for samples in speech])
        if any(samples[0] < 0 for samples in speech):
            raise ValueError(f"below 0: {speech[0][0]}")
        return [2 * samples[0] for samples in speech]


def test_waiting_waveforms_of_all_threads_make_batches_and_an_error_is_its_own():
    model = Doubler()
    thread = ModelThread(model, batch_seconds=4)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(thread.transcribe, [np.full(4, 1)])
        while thread._waiting:
            pass
        later = [pool.submit(thread.transcribe, [np.full(2, n)]) for n in (2, -3)]
        while len(thread._waiting) < 2:
            pass
        model.free.set()
        assert first.result(10) == [2] and later[0].result(10) == [4]
        with pytest.raises(ValueError, match="below 0: -3"):
            later[1].result(10)
        assert thread.transcribe([np.full(4, 5), np.full(1, 6)]) == [10, 12]
    assert model.batches[0] == [1]
    assert sorted(model.batches[1]) == [-3, 2]  # then each alone
    assert model.batches[-2:] == [[5], [6]]
