"""Silero's voice activity detection, whose weights come in the package `silero-vad`."""

import warnings

import torch

RATE = 16000  # Hz
WINDOW = 512  # samples, 32 ms: what one call is given


def load_vad() -> torch.nn.Module:
    """Load the detector: called with a window and the rate, it gives a probability.

    It keeps a state from window to window: whoever reads audio needs one of their own,
    or `reset_states()` before.
    """
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript, the package's own format
        from silero_vad import load_silero_vad

        vad = load_silero_vad()
    torch.set_num_threads(threads)  # the import has set it to 1 for the whole process
    return vad
