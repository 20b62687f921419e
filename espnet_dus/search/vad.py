"""Silero's voice activity detection; its weights come in the package `silero-vad`."""

import warnings

import torch

RATE = 16000  # Hz
WINDOW = 512  # samples per call, 32 ms


def load_vad() -> torch.nn.Module:
    """Load the detector, which maps a window and the rate to a speech probability.

    It keeps a state from window to window: each reader of audio needs its own, or has
    to call `reset_states()` first.
    """
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript, the package's own format
        from silero_vad import load_silero_vad

        vad = load_silero_vad()
    torch.set_num_threads(threads)  # the import has set it to 1 for the whole process
    return vad
