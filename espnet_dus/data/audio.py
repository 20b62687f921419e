"""Audio from files and commands: float32, mono, or an error that says why not.

All reading of audio is here: of stage 3, long recordings, decoding and Python. Samples
in memory are converted by `waveform`.
"""

import functools
import io
import mmap
import os
import stat
import subprocess
from contextlib import contextmanager
from typing import Iterator, List, Tuple, Union

import numpy as np
import soundfile

from espnet_dus.data.audio_ark import read_entry, split_location
from espnet_dus.data.containers import FORMATS, AudioError, Patch, patches
from espnet_dus.data.data_dir import Utterance
from espnet_dus.data.waveform import Channel, mix, resample

# Segments may end this many seconds after the recording, as Kaldi's extract-segments
# allows: ends come from forced alignments.
MAX_OVERSHOOT = 0.5


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
        wav: A file in a format that libsndfile reads, an `.ark` with an offset, or a
            command that ends in `|`.
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
    elif (location := split_location(wav))[1] is not None:
        content = read_entry(*location)
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
