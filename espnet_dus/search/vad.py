"""Silero's voice activity detection; its weights come in the package `silero-vad`."""

import threading
import warnings

import torch

RATE = 16000  # Hz
WINDOW = 512  # samples per call, 32 ms

_of_thread = threading.local()
_loading = threading.Lock()


def voice_detector() -> torch.nn.Module:
    """Return this thread's detector, reset for a new recording.

    It maps a window and the rate to a speech probability, and keeps a state from window
    to window. Each thread therefore has its own, and reads one audio at a time.
    """
    if not hasattr(_of_thread, "detector"):
        _of_thread.detector = _load()
    _of_thread.detector.reset_states()
    return _of_thread.detector


def _load() -> torch.nn.Module:
    with _loading, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript, the package's own format
        threads = torch.get_num_threads()
        from silero_vad import load_silero_vad

        detector = load_silero_vad()
        # the import has set it to 1 for the whole process
        torch.set_num_threads(threads)
    return detector
