"""Guards against hallucinated text.

Each is named in the hypothesis on which it acted:

    length      at most `maxlenratio` tokens per speech position
    repetition  a token sequence repeated this many times in a row is a loop: the token
                that would repeat it once more is forbidden, and the search continues
                with the next best
    no_speech   audio in which Silero's voice activity detection finds no speech is not
                given to the LLM (its weights come in the package `silero-vad`)
"""

from typing import List, Sequence

import numpy as np
import torch

from espnet_dus.search.vad import RATE, WINDOW, voice_detector

# The longest token sequence whose repetition is looked for.
MAX_LOOP = 8
# Number of consecutive VAD windows that must be speech: 96 ms.
NUM_WINDOWS = 3


def length_limits(lengths_B: torch.Tensor, maxlenratio: float) -> torch.Tensor:
    """Return the maximum number of tokens of each utterance.

    Args:
        lengths_B: (B,) speech positions.
        maxlenratio: Tokens per position; 0 is ESPnet's: one per position, so that in
            practice EOS decides.

    Returns:
        (B,) long, at least 1.
    """
    return (lengths_B * (maxlenratio or 1.0)).ceil().clamp(min=1).long()


def loop_continuations(ids: Sequence[int], repetition: int) -> List[int]:
    """Return the tokens that would continue a loop at the end of a text.

    Args:
        ids: The text so far.
        repetition: A sequence of up to `MAX_LOOP` tokens repeated this many times is a
            loop; 0: nothing is.

    Returns:
        The first token of each sequence that the text ends with `repetition` times.
    """
    if repetition == 0:
        return []
    ids = list(ids)
    longest = min(MAX_LOOP, len(ids) // repetition)
    return [
        ids[-length]
        for length in range(1, longest + 1)
        if ids[-length * repetition :] == ids[-length:] * repetition
    ]


def has_speech(speech: np.ndarray, fs: int, threshold: float) -> bool:
    """Return whether audio has speech; stops at the first that is found.

    Args:
        speech: (samples,), from -1 to 1.
        fs: Sampling rate in Hz.
        threshold: The speech probability that three consecutive windows of 32 ms must
            reach.

    Returns:
        Whether three such windows were found. Audio shorter than three windows counts
        as speech: it is too short to tell.
    """
    samples_T = torch.as_tensor(speech, dtype=torch.float32)
    if fs != RATE:
        import torchaudio

        samples_T = torchaudio.functional.resample(samples_T, fs, RATE)
    windows = samples_T.split(WINDOW)
    if len(samples_T) < NUM_WINDOWS * WINDOW:
        return True
    vad, num_speech = voice_detector(), 0
    with torch.inference_mode():
        for window in windows:
            window = torch.nn.functional.pad(window, (0, WINDOW - len(window)))
            is_speech = vad(window, RATE).item() >= threshold
            num_speech = num_speech + 1 if is_speech else 0
            if num_speech == NUM_WINDOWS:
                return True
    return False
