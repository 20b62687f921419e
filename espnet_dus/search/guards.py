"""What keeps an LLM from writing what nobody said.

Three guards, each named in the hypothesis it has acted on:

    length      at most `maxlenratio` tokens for a speech position
    repetition  a sequence of tokens that stands so often in a row is a loop: the text
                ends with its first occurrence
    no_speech   audio in which Silero's voice activity detection (its weights come in
                the package `silero-vad`) hears nobody is not given to the LLM at all
"""

import functools
from typing import Sequence

import numpy as np
import torch

from espnet_dus.search.vad import RATE, WINDOW, load_vad

# The longest sequence of tokens whose repetition is looked for.
MAX_LOOP = 8
# So many of Silero's windows in a row must be speech: 96 ms.
NUM_WINDOWS = 3


def length_limits(lengths_B: torch.Tensor, maxlenratio: float) -> torch.Tensor:
    """Give the most tokens (B,) of utterances with so many speech positions (B,)."""
    return (lengths_B * maxlenratio).ceil().clamp(min=1).long()


def loop_length(ids: Sequence[int], repetition: int) -> int:
    """Give the length of the sequence that stands `repetition` times at the end.

    Returns:
        The shortest such length, at most `MAX_LOOP`; 0 where there is none, or where
        `repetition` is 0.
    """
    if repetition == 0:
        return 0
    for length in range(1, min(MAX_LOOP, len(ids) // repetition) + 1):
        end = ids[-length:]
        if ids[-length * repetition :] == end * repetition:
            return length
    return 0


def has_speech(speech: np.ndarray, fs: int, threshold: float) -> bool:
    """Tell whether anybody speaks, as soon as that is certain.

    Args:
        speech: (samples,), from -1 to 1.
        fs: Their rate in Hz.
        threshold: The probability of speech that three windows of 32 ms in a row must
            have.

    Returns:
        Whether such a place was found. Audio shorter than three windows is taken for
        speech: too little to tell.
    """
    samples_T = torch.as_tensor(speech, dtype=torch.float32)
    if fs != RATE:
        import torchaudio

        samples_T = torchaudio.functional.resample(samples_T, fs, RATE)
    windows = samples_T.split(WINDOW)
    if len(samples_T) < NUM_WINDOWS * WINDOW:
        return True
    vad, num_speech = _vad(), 0
    vad.reset_states()
    with torch.inference_mode():
        for window in windows:
            window = torch.nn.functional.pad(window, (0, WINDOW - len(window)))
            is_speech = vad(window, RATE).item() >= threshold
            num_speech = num_speech + 1 if is_speech else 0
            if num_speech == NUM_WINDOWS:
                return True
    return False


@functools.lru_cache(maxsize=1)
def _vad() -> torch.nn.Module:
    return load_vad()
