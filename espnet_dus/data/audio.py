"""The samples of one utterance, or a message that says what is wrong with them."""

import functools
import io
import os
import struct
import subprocess
from typing import BinaryIO, Tuple

import humanfriendly
import numpy as np
import soundfile
import soxr

from espnet_dus.data.data_dir import Utterance

# Kaldi's extract-segments also forgives that much: ends come from forced alignments.
MAX_OVERSHOOT = 0.5
MAX_FRAMES = 1 << 40  # libsndfile's number for "unknown" is larger


class AudioError(ValueError):
    """The audio of one utterance cannot be used."""


def read_audio(utterance: Utterance, fs: int, allow_pipes: bool = False) -> np.ndarray:
    """Read an utterance's samples: its segment, at its speed, at rate `fs`.

    Args:
        utterance: Where the audio is; mono, in any format that libsndfile reads.
        fs: Sampling rate of the result in Hz.
        allow_pipes: Whether to run an entry that is a command (`... |`).

    Returns:
        Samples from -1 to 1 (float32, shape (samples,)).

    Raises:
        AudioError: There is no audio, or not all of it; the utterance and the file
            are named.
    """
    try:
        with _open(utterance.wav, allow_pipes) as file:
            samples, rate = _decode(file, utterance)
    except OSError as error:
        raise _fault(utterance, error.strerror or str(error)) from error
    except AudioError as error:
        raise _fault(utterance, str(error)) from error
    # Like sox's `speed`: played faster, tempo and pitch rise together. One resampling
    # does both, so that speed costs no second loss.
    if rate * utterance.speed != fs:
        samples = soxr.resample(samples, rate * utterance.speed, fs)
    if len(samples) == 0:
        raise _fault(utterance, "has no samples")
    return samples


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """Round samples from -1 to 1 to 16-bit integers; what lies beyond is clipped."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def parse_fs(text: str) -> int:
    """Read a sampling rate such as 16k or 16000, in Hz.

    Raises:
        ValueError: It is no such thing.
    """
    try:
        fs = humanfriendly.parse_size(text)
    except humanfriendly.InvalidSize:
        fs = 0
    if fs <= 0:
        raise ValueError(f"expected a sampling rate such as 16k or 16000, got '{text}'")
    return fs


def _fault(utterance: Utterance, what: str) -> AudioError:
    return AudioError(f"utterance {utterance.id}: {utterance.wav}: {what}")


def _open(wav: str, allow_pipes: bool) -> BinaryIO:
    if not wav:
        raise AudioError("has no file in wav.scp")
    if not wav.endswith("|"):
        return open(wav, "rb")
    if not allow_pipes:
        raise AudioError(
            "is a command. Commands in data files are not run: convert the audio to "
            "files first, or pass --allow_pipes true if you trust this wav.scp"
        )
    return io.BytesIO(_output(wav[:-1].strip()))


# Segments of one recording follow one another: run its command once for all of them.
@functools.lru_cache(maxsize=1)
def _output(command: str) -> bytes:
    # The one place where a command from a data file is run, as Kaldi does with every
    # `... |`. It can do whatever the user can, hence only on their explicit wish.
    done = subprocess.run(["bash", "-c", command], capture_output=True)
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise AudioError(f"failed with exit code {done.returncode}: {' '.join(last)}")
    return done.stdout


def _decode(file: BinaryIO, utterance: Utterance) -> Tuple[np.ndarray, int]:
    if file.seek(0, os.SEEK_END) == 0:
        raise AudioError("is empty (0 bytes)")
    missing = _missing_bytes(file)
    if missing > 0:
        raise AudioError(
            f"is truncated: {missing} bytes that its header promises are missing"
        )
    file.seek(0)
    try:
        audio = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"is not audio that can be read ({error.error_string}); convert it to "
            "wav or flac"
        ) from error
    with audio:
        if audio.channels != 1:
            raise AudioError(f"has {audio.channels} channels; expected mono")
        if audio.frames == 0:
            raise AudioError("has no samples")
        if audio.frames > MAX_FRAMES:
            raise AudioError(
                "does not say how long it is, as if written to a pipe; convert it to "
                "wav or flac once more"
            )
        first, last = _span(utterance, audio.frames, audio.samplerate)
        try:
            audio.seek(first)
            samples = audio.read(last - first, dtype="float32")
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"is damaged or truncated: decoding stopped ({error.error_string})"
            ) from error
        rate = audio.samplerate
    if len(samples) != last - first:
        raise AudioError(
            f"is truncated: {last - first} samples expected, {len(samples)} read"
        )
    if not np.isfinite(samples).all():
        raise AudioError("has samples that are NaN or infinite")
    return samples, rate


def _span(utterance: Utterance, frames: int, rate: int) -> Tuple[int, int]:
    first = round(utterance.start * rate)
    last = frames if utterance.end == -1 else round(utterance.end * rate)
    if first >= frames or last > frames + MAX_OVERSHOOT * rate:
        raise AudioError(
            f"lasts {frames / rate:.2f} s, so it does not hold the segment from "
            f"{utterance.start} to {utterance.end} s"
        )
    return first, min(last, frames)


def _missing_bytes(file: BinaryIO) -> int:
    """Say how many bytes of samples a header promises beyond the file's end.

    libsndfile takes the file's length for the truth in wav and NIST files and would
    return half a recording without a word. Other formats are left to the decoder.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(1024)
    promised = size
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        position, name, length = 12, b"", 0
        while name != b"data":
            file.seek(position)
            chunk = file.read(8)
            if len(chunk) < 8:
                return 0  # no samples at all: libsndfile says so
            name, length = struct.unpack("<4sI", chunk)
            position += 8 + length + length % 2
        # Writers to a pipe cannot know the length and put the largest number there.
        if length < 0x7FFF0000:
            promised = file.tell() + length
    elif head[:7] == b"NIST_1A":
        lines = head.decode("latin-1").splitlines()
        fields = {line.split()[0]: line.split()[-1] for line in lines if line.strip()}
        try:
            promised = int(lines[1]) + (
                int(fields["sample_count"])
                * int(fields.get("channel_count", "1"))
                * int(fields["sample_n_bytes"])
            )
        except (IndexError, KeyError, ValueError):
            pass  # an odd header: libsndfile has its own rules
        if fields.get("sample_coding", "pcm") not in ("pcm", "ulaw", "alaw"):
            promised = size  # compressed: the count says nothing about bytes
    return promised - size
