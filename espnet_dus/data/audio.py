"""Audio from files, commands and arrays: float32, mono, or an error that says why not.

Everything that reads audio reads it here: stage 3, long recordings, decoding, Python.
"""

import functools
import io
import logging
import mmap
import os
import stat
import subprocess
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Tuple, Union

import humanfriendly
import numpy as np
import soundfile
import soxr

from espnet_dus.data.containers import FORMATS, AudioError, Patch, patches
from espnet_dus.data.data_dir import Utterance

# Segments may end this many seconds after the recording, as Kaldi's extract-segments
# allows: ends come from forced alignments.
MAX_OVERSHOOT = 0.5
MAX_CHANNELS = 32  # of an array; one with more is not audio
# Float samples beyond this are integers that were cast. Recordings exceed 1, not this.
MAX_FLOAT = 16.0
# Channels cancel if their mean has less than this share of the power that the mean of
# unrelated channels would have.
CANCELLED = 0.1

Channel = Optional[Union[int, str]]


class Recording:
    """An open recording.

    Args:
        audio: libsndfile's view of it.
        name: For messages.
        channel: See `open_audio`.

    Attributes:
        rate: Sampling rate in Hz.
        frames: Number of samples of each channel.

    Raises:
        AudioError: It has no samples, or several channels and none is chosen.
    """

    def __init__(self, audio: soundfile.SoundFile, name: str, channel: Channel):
        self.audio, self.name, self.channel = audio, name, channel
        self.position = 0
        self.rate: int = audio.samplerate
        self.frames: int = audio.frames
        if audio.format not in FORMATS:
            raise AudioError(
                f"is in the format {audio.format}, in which a cut file looks like a "
                "whole one; convert it to wav or flac"
            )
        if self.frames == 0:
            raise AudioError("has no samples")
        if channel is None and audio.channels > 1:
            raise AudioError(
                f"has {audio.channels} channels, expected one: choose one with "
                f"--channel 0 (to {audio.channels - 1}), or --channel mean"
            )
        if isinstance(channel, int) and not 0 <= channel < audio.channels:
            raise AudioError(
                f"has no channel {channel}; its {audio.channels} channel(s) count from "
                "0 (--channel)"
            )

    @property
    def seconds(self) -> float:
        """Return the duration."""
        return self.frames / self.rate

    def read(self, first: int, last: int) -> np.ndarray:
        """Read the samples from `first` up to `last` (exclusive).

        Returns:
            Mono samples, from -1 to 1 (float32, shape (last - first,)).

        Raises:
            AudioError: Decoding stops before `last`, or a sample is NaN or infinite.
        """
        try:
            if first != self.position and self.audio.seekable():
                self.audio.seek(first)
            elif first > self.position:  # GSM: decode what lies between
                self.audio.read(first - self.position)
            elif first < self.position:
                raise AudioError("cannot be read backwards; convert it to wav or flac")
            samples = self.audio.read(last - first, dtype="float32", always_2d=True)
            self.position = last
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"is damaged or truncated: decoding stopped ({error.error_string})"
            ) from error
        if len(samples) != last - first:
            raise AudioError(
                f"is truncated: {last - first} samples expected, {len(samples)} read"
            )
        if not np.isfinite(samples).all():
            raise AudioError("has samples that are NaN or infinite")
        return mix(samples, self.channel, self.name)

    def blocks(self, seconds: float) -> Iterator[np.ndarray]:
        """Read everything, in blocks of a duration."""
        size = round(seconds * self.rate)
        for first in range(0, self.frames, size):
            yield self.read(first, min(first + size, self.frames))


@contextmanager
def open_audio(
    wav: Union[str, os.PathLike], channel: Channel = "mean", allow_pipes: bool = False
) -> Iterator[Recording]:
    """Open a recording that is known to be whole.

    Args:
        wav: A file in a format that libsndfile reads, or a command that ends in `|`.
        channel: The channel to take (from 0), or `mean` for the mean of all; None:
            several channels are an error.
        allow_pipes: Whether to run a command.

    Yields:
        The recording. An `AudioError` raised in the block gets the name of the file.

    Raises:
        AudioError: The file cannot be read, is cut, joined, or not audio.
    """
    try:
        try:
            audio = _open(str(wav), allow_pipes)
        except OSError as error:
            raise AudioError(error.strerror or str(error)) from error
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"is not audio that can be read ({error.error_string}); convert it to "
                "wav or flac"
            ) from error
        with audio:
            yield Recording(audio, str(wav), channel)
    except AudioError as error:
        raise AudioError(f"{wav}: {error}") from error


def read_file(
    wav: Union[str, os.PathLike], fs: int, channel: Channel = "mean"
) -> np.ndarray:
    """Read a whole recording at rate `fs`.

    Args:
        wav: See `open_audio`.
        fs: Sampling rate of the result in Hz.
        channel: See `open_audio`.

    Returns:
        Samples from -1 to 1 (float32, shape (samples,)).

    Raises:
        AudioError: See `open_audio`.
    """
    with open_audio(wav, channel) as recording:
        return resample(recording.read(0, recording.frames), recording.rate, fs)


def read_audio(
    utterance: Utterance, fs: int, allow_pipes: bool = False, channel: Channel = None
) -> np.ndarray:
    """Read an utterance: its segment, at its speed, at rate `fs`.

    Args:
        utterance: Where the audio is.
        fs: Sampling rate of the result in Hz.
        allow_pipes: See `open_audio`.
        channel: See `open_audio`.

    Returns:
        Samples from -1 to 1 (float32, shape (samples,)).

    Raises:
        AudioError: The audio cannot be used; the utterance and the file are named.
    """
    try:
        with open_audio(utterance.wav, channel, allow_pipes) as recording:
            samples = recording.read(*_span(utterance, recording))
            # Like sox's `speed`: tempo and pitch rise together. One resampling does
            # both, so that speed costs no second loss.
            samples = resample(samples, recording.rate * utterance.speed, fs)
            if len(samples) == 0:
                raise AudioError("has no samples")
    except AudioError as error:
        raise AudioError(f"utterance {utterance.id}: {error}") from error
    return samples


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


def _open(wav: str, allow_pipes: bool) -> soundfile.SoundFile:
    """Open a file or a command's output, with the lengths filled in."""
    found = None
    if wav.endswith("|"):
        if not allow_pipes:
            raise AudioError(
                "is a command. Commands in data files are not run: convert the audio "
                "to files first, or pass --allow_pipes true if you trust this wav.scp"
            )
        content = _output(wav[:-1].strip())
    else:
        status = os.stat(wav)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            found = _patches(wav, status.st_size, status.st_mtime_ns)
            if not found:
                # Not by its name, whose suffix soundfile would take for a format.
                return soundfile.SoundFile(os.open(wav, os.O_RDONLY))
        with open(wav, "rb") as file:
            content = file.read()
    data = bytearray(content)
    for offset, patch in patches(data) if found is None else found:
        data[offset : offset + len(patch)] = patch
    return soundfile.SoundFile(io.BytesIO(data))


# The segments of a recording follow one another: check it once for all of them.
@functools.lru_cache(maxsize=16)
def _patches(wav: str, size: int, mtime: int) -> List[Patch]:
    with open(wav, "rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return patches(data)


# Segments of one recording follow one another: run its command once for all of them.
@functools.lru_cache(maxsize=1)
def _output(command: str) -> bytes:
    # The one place where a command from a data file is run, as Kaldi does with every
    # `... |`. It can do whatever the user can, hence only on their explicit wish.
    bash = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(bash, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise AudioError(f"failed with exit code {done.returncode}: {' '.join(last)}")
    return done.stdout


def _span(utterance: Utterance, recording: Recording) -> Tuple[int, int]:
    rate, frames = recording.rate, recording.frames
    first = round(utterance.start * rate)
    last = frames if utterance.end == -1 else round(utterance.end * rate)
    if first >= frames or last > frames + MAX_OVERSHOOT * rate:
        raise AudioError(
            f"lasts {recording.seconds:.2f} s, so it does not hold the segment from "
            f"{utterance.start} to {utterance.end} s"
        )
    return first, min(last, frames)
