"""Long recordings: segments of speech, short enough for the model.

    file -> blocks -> speech probabilities -> segments -> their samples

Silero VAD gives a probability for every 32 ms, which are 112,500 numbers for an hour;
silero's own segmentation makes segments from them. The audio is read twice, block by
block for the probabilities and then segment by segment, and never held as a whole.
Segments do not overlap, so their transcripts are simply concatenated.
"""

from pathlib import Path
from typing import Iterator, NamedTuple, Union

import numpy as np
import soxr
import torch

from espnet_dus.data.audio import open_audio
from espnet_dus.data.waveform import Channel, resample
from espnet_dus.search.vad import RATE, WINDOW, voice_detector

BLOCK_SECONDS = 30.0  # read at a time
# Silero's options, in milliseconds where it says so
SILERO = dict(
    threshold=0.5,  # speech starts
    neg_threshold=0.35,  # speech continues
    min_speech_duration_ms=100,  # anything shorter is a click
    min_silence_duration_ms=1000,  # a shorter pause does not end a segment
    speech_pad_ms=160,  # kept before and after; neighbours share a shorter pause
)


class Segment(NamedTuple):
    """A piece of a recording."""

    start: float  # in seconds from the start of the recording, as `end`
    end: float
    samples: np.ndarray  # mono, from -1 to 1 (float32, shape (samples,))


def segments(
    path: Union[str, Path],
    fs: int,
    max_seconds: float = 20.0,
    channel: Channel = "mean",
) -> Iterator[Segment]:
    """Cut a recording into segments of speech, in order.

    A segment starts and ends in silence. Speech longer than `max_seconds` is cut at its
    longest pause or, if it has none, at that length. A recording of a single utterance
    is one segment with all of its silence, as the utterances of a test set are.

    Args:
        path: See `open_audio`.
        fs: Sampling rate of the segments' samples in Hz.
        max_seconds: Maximum duration of a segment, padding included.
        channel: See `open_audio`.

    Yields:
        Segments that do not overlap; none for silence.

    Raises:
        ValueError: `max_seconds` is too short.
        AudioError: See `open_audio`.
    """
    if max_seconds < 1.5:
        raise ValueError(f"max_seconds: expected at least 1.5, got {max_seconds}")
    vad = voice_detector()
    from silero_vad.utils_vad import get_speech_timestamps_from_probs

    probabilities, num_samples = [], 0
    for samples in _windows(path, channel):
        num_samples += len(samples)
        padded = np.pad(samples, (0, -len(samples) % WINDOW))
        for window in torch.from_numpy(padded.reshape(-1, WINDOW)):
            with torch.inference_mode():
                probabilities.append(vad(window, RATE).item())
    spans = get_speech_timestamps_from_probs(
        probabilities,
        RATE,
        max_speech_duration_s=max_seconds,
        audio_length_samples=num_samples,
        **SILERO,
    )
    if len(spans) == 1 and num_samples <= max_seconds * RATE:
        spans = [{"start": 0, "end": num_samples}]
    with open_audio(path, channel) as recording:
        for span in spans:
            start = span["start"] / RATE
            end = min(span["end"] / RATE, recording.seconds)
            first, last = round(start * recording.rate), round(end * recording.rate)
            samples = recording.read(first, last)
            yield Segment(start, end, resample(samples, recording.rate, fs))


def _windows(path: Union[str, Path], channel: Channel) -> Iterator[np.ndarray]:
    """Yield a file's mono samples at the VAD's rate, all but the last whole windows."""
    with open_audio(path, channel) as recording:
        stream = soxr.ResampleStream(recording.rate, RATE, 1, dtype="float32")
        rest = np.zeros(0, np.float32)
        for block in recording.blocks(BLOCK_SECONDS):
            rest = np.concatenate([rest, stream.resample_chunk(block)])
            whole = len(rest) - len(rest) % WINDOW
            yield rest[:whole]
            rest = rest[whole:]
        last = stream.resample_chunk(np.zeros(0, np.float32), last=True)
        yield np.concatenate([rest, last])
