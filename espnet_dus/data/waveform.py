"""Samples in memory: of any library, type, rate and channels, to float32 and mono."""

import functools
import logging
from typing import Any, Optional, Union

import humanfriendly
import numpy as np
import soxr

from espnet_dus.data.containers import AudioError

MAX_CHANNELS = 32  # of an array; one with more is not audio
# Float samples beyond this are integers that were cast. Recordings exceed 1, not this.
MAX_FLOAT = 16.0
# Channels cancel if their mean has less than this share of the power that the mean of
# unrelated channels would have.
CANCELLED = 0.1

Channel = Optional[Union[int, str]]


def as_waveform(
    array: Any, rate: Optional[int] = None, fs: Optional[int] = None
) -> np.ndarray:
    """Convert an array of samples, of whatever library, to a waveform.

    Args:
        array: Samples of shape (samples,), (samples, channels) or (channels, samples):
            an array, a tensor or a list; floating point from -1 to 1, or int16, int32
            or uint8 as in wav files. Channels are mixed (see `mix`).
        rate: Sampling rate of `array` in Hz; None: it is `fs`.
        fs: Sampling rate of the result in Hz.

    Returns:
        Samples from -1 to 1 (float32, shape (samples,), contiguous).

    Raises:
        AudioError: It has no samples, NaN or infinite ones, or another shape or type.
    """
    if hasattr(array, "detach"):  # a tensor
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    try:
        array = np.asarray(array)
    except ValueError as error:  # lists of unequal lengths
        raise AudioError(f"the samples are not an array: {error}") from error
    samples = _as_float32(array)
    if samples.ndim == 2:
        if samples.shape[0] < samples.shape[1]:
            samples = samples.T
        if 0 < samples.shape[1] <= MAX_CHANNELS:
            samples = mix(samples)
    if samples.size == 0:
        raise AudioError(f"the waveform has no samples: its shape is {array.shape}")
    if samples.ndim != 1:
        raise AudioError(
            f"the waveform has the shape {array.shape}; expected (samples,), "
            "(samples, channels) or (channels, samples)"
        )
    if rate is not None and fs is not None:
        samples = resample(samples, rate, fs)
    return np.ascontiguousarray(samples)


def _as_float32(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype in (np.int16, np.int32):
        scale = -float(np.iinfo(array.dtype).min)
        return (array / scale).astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(
            f"the samples are of type {array.dtype}; expected floating point from -1 "
            "to 1, int16, int32 or uint8"
        )
    if not np.isfinite(array).all():
        raise AudioError("the waveform has samples that are NaN or infinite")
    loudest = np.abs(array).max(initial=0)
    if loudest > MAX_FLOAT:
        raise AudioError(
            f"the waveform has floating-point samples up to {loudest:g}, expected -1 "
            "to 1: divide 16-bit samples by 32768, or pass them as int16"
        )
    return array.astype(np.float32)


def mix(
    samples_NC: np.ndarray, channel: Channel = "mean", name: str = "the waveform"
) -> np.ndarray:
    """Take one channel, or the mean of all.

    Channels in opposite phase would cancel in the mean: the loudest is then taken,
    with a warning.

    Args:
        samples_NC: Samples (samples, channels).
        channel: The channel's index; otherwise the mean.
        name: Of the audio, for the warning.

    Returns:
        Samples (samples,).
    """
    channels = samples_NC.shape[1]
    if isinstance(channel, int) or channels == 1:
        return samples_NC[:, channel if isinstance(channel, int) else 0]
    mean_N = samples_NC.mean(1)
    powers_C = np.square(samples_NC, dtype=np.float64).sum(0)
    power = np.square(mean_N, dtype=np.float64).sum()
    if power < CANCELLED * powers_C.sum() / channels**2:
        loudest = int(powers_C.argmax())
        _warn_of_cancelled(name, loudest)
        return samples_NC[:, loudest]
    return mean_N


@functools.lru_cache(maxsize=1024)  # once for all blocks of a recording
def _warn_of_cancelled(name: str, loudest: int) -> None:
    logging.warning(
        f"{name}: the channels are in opposite phase, so that their mean is almost "
        f"silent: channel {loudest} is taken alone"
    )


def resample(samples: np.ndarray, rate: float, fs: int) -> np.ndarray:
    """Convert samples (samples,) from a rate to another, in Hz."""
    return samples if rate == fs else soxr.resample(samples, rate, fs)


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """Round samples from -1 to 1 to 16-bit integers; what lies beyond is clipped."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def parse_fs(text: Union[int, str]) -> int:
    """Read a sampling rate such as 16k or 16000, in Hz.

    Raises:
        ValueError: It is not a sampling rate.
    """
    try:
        fs = humanfriendly.parse_size(str(text))
    except humanfriendly.InvalidSize:
        fs = 0
    if fs <= 0:
        raise ValueError(f"expected a sampling rate such as 16k or 16000, got '{text}'")
    return fs
