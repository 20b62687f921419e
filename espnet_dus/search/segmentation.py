"""Long recordings: found speech, in segments short enough for the model.

    file -> blocks -> Silero VAD -> regions of speech -> segments -> their samples

Every arrow is a generator, so that memory depends on the block and the segment and not
on the recording: an hour is read twice (once to find its speech, once by segment) and
never held. Segments do not overlap; their transcripts are joined as they stand.
"""

import itertools
from collections import deque
from pathlib import Path
from typing import Iterable, Iterator, NamedTuple, Tuple, Union

import numpy as np
import soxr
import torch

from espnet_dus.data.audio import Recording, open_audio, resample
from espnet_dus.search.vad import RATE, WINDOW, load_vad

BLOCK_SECONDS = 30.0  # read at a time

# Silero's thresholds: speech starts above the first and goes on above the second.
SPEECH_STARTS = 0.5
SPEECH_GOES_ON = 0.35
# Silence that ends a region. Half of it stays at each edge of a segment as padding, so
# that neighbours never overlap.
SILENCE_SECONDS = 0.32
MIN_SPEECH_SECONDS = 0.1  # a shorter region is a click
MAX_PAUSE_SECONDS = 1.0  # regions farther apart are not merged


class Segment(NamedTuple):
    """A piece of a recording.

    Attributes:
        start: In seconds from the start of the recording.
        end: Likewise.
        samples: Mono, from -1 to 1 (float32, shape (samples,)).
    """

    start: float
    end: float
    samples: np.ndarray


def segments(
    path: Union[str, Path], fs: int, max_seconds: float = 20.0
) -> Iterator[Segment]:
    """Cut a recording into segments of speech, in its order.

    A segment starts and ends in silence, unless speech goes on for longer than
    `max_seconds`: it is then cut where it is quietest.

    Args:
        path: Any file that libsndfile reads; of several channels the mean is taken.
        fs: Sampling rate of the segments' samples in Hz.
        max_seconds: No segment is longer, padding included.

    Yields:
        Segments, none overlapping the next; none at all for silence.

    Raises:
        ValueError: `max_seconds` is too short to cut at.
        AudioError: See `open_audio`.
    """
    padding = _frames(SILENCE_SECONDS) // 2
    longest = int(max_seconds * RATE / WINDOW) - 2 * padding
    if longest < _frames(1.0):
        raise ValueError(f"max_seconds: expected at least 1.5, got {max_seconds}")
    spans = merge(regions(speech_frames(path), longest), longest)
    nowhere = (-1, -1)
    neighbours = itertools.pairwise(itertools.chain([nowhere], spans, [nowhere]))
    with open_audio(path) as recording:
        before = 0  # padding, which there is none of where speech was cut
        for (first, last), (following, _) in neighbours:
            after = 0 if following == last else padding
            if (first, last) != nowhere:
                start = max((first - before) * WINDOW / RATE, 0.0)
                end = min((last + after) * WINDOW / RATE, recording.seconds)
                yield Segment(start, end, _read(recording, start, end, fs))
            before = after


def _frames(seconds: float) -> int:
    return round(seconds * RATE / WINDOW)


def _read(recording: Recording, start: float, end: float, fs: int) -> np.ndarray:
    rate = recording.rate
    return resample(recording.read(round(start * rate), round(end * rate)), rate, fs)


def blocks(path: Union[str, Path]) -> Iterator[np.ndarray]:
    """Read a file at the VAD's rate, block by block.

    Args:
        path: Any file that libsndfile reads.

    Yields:
        Mono samples (samples,), float32; the last block may be empty.

    Raises:
        AudioError: See `open_audio`.
    """
    with open_audio(path) as recording:
        stream = soxr.ResampleStream(recording.rate, RATE, 1, dtype="float32")
        for block in recording.blocks(BLOCK_SECONDS):
            yield stream.resample_chunk(block)
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def speech_frames(path: Union[str, Path]) -> Iterator[Tuple[float, float]]:
    """Run the VAD over a file.

    Yields:
        For each frame of 32 ms the probability of speech and the mean square of its
        samples. The last frame is filled up with silence.
    """
    vad = load_vad()
    rest = np.zeros(0, np.float32)

    def probabilities(samples):
        frames = torch.from_numpy(samples.reshape(-1, WINDOW))
        for frame, power in zip(frames, frames.pow(2).mean(1).tolist()):
            with torch.inference_mode():
                yield vad(frame, RATE).item(), power

    for block in blocks(path):
        rest = np.concatenate([rest, block])
        whole = len(rest) - len(rest) % WINDOW
        yield from probabilities(rest[:whole])
        rest = rest[whole:]
    if len(rest):
        yield from probabilities(np.pad(rest, (0, WINDOW - len(rest))))


def regions(
    frames: Iterable[Tuple[float, float]], longest: int
) -> Iterator[Tuple[int, int]]:
    """Find speech without a pause.

    Args:
        frames: Probability of speech and power of each frame.
        longest: Frames; a longer region is cut at its quietest place.

    Yields:
        First frame and end (exclusive) of each region. Two that were cut apart adjoin.
    """
    silence, shortest = _frames(SILENCE_SECONDS), _frames(MIN_SPEECH_SECONDS)
    start = end = None  # of the region that is open; it has been speech up to `end`
    powers: deque = deque()  # of its frames
    for now, (probability, power) in enumerate(frames):
        if start is None:
            if probability < SPEECH_STARTS:
                continue
            start = now
        powers.append(power)
        if probability >= SPEECH_GOES_ON:
            end = now + 1
        if now + 1 - end >= silence:
            if end - start >= shortest:
                yield start, end
            start = None
            powers.clear()
        elif end - start > longest:
            length = _quietest(np.array(powers)[: longest - shortest + 1])
            yield start, start + length
            start += length
            for _ in range(length):
                powers.popleft()
    if start is not None and end - start >= shortest:
        yield start, end


def _quietest(powers: np.ndarray) -> int:
    """Find the quietest of the later places, by the mean over three frames."""
    half = len(powers) // 2
    smooth = np.convolve(powers, np.ones(3), mode="same")
    return half + int(smooth[half:-1].argmin())


def merge(spans: Iterable[Tuple[int, int]], longest: int) -> Iterator[Tuple[int, int]]:
    """Join neighbouring regions while they fit.

    Args:
        spans: First frame and end of each region, in order.
        longest: Frames of a joined region at most.

    Yields:
        First frame and end of each joined region.
    """
    pause = _frames(MAX_PAUSE_SECONDS)
    start = end = None
    for first, last in spans:
        if start is not None and (last - start > longest or first - end > pause):
            yield start, end
            start = None
        start, end = first if start is None else start, last
    if start is not None:
        yield start, end
