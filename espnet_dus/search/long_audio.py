"""From the segments of a recording to its transcript.

Segments do not overlap and end in silence (or, in speech without a pause, where the
probability of speech is lowest), so their transcripts are simply concatenated.
"""

import math
from typing import Iterable, Iterator, List, NamedTuple

from espnet_dus.search.result import Hypothesis
from espnet_dus.search.segmentation import Segment
from espnet_dus.search.timing import WordTime


class LongResult(NamedTuple):
    """The transcript of a segment; all times count from the recording's start."""

    start: float  # seconds
    end: float
    hypothesis: Hypothesis


def batches(segments: Iterable[Segment], batch_size: float) -> Iterator[List[Segment]]:
    """Group segments into batches, in order.

    Args:
        segments: Segments of a recording.
        batch_size: Maximum duration of a batch in seconds, padding included; a longer
            segment is a batch of its own.

    Yields:
        Batches of at least one segment.
    """
    batch: List[Segment] = []
    for segment in segments:
        longest = max(s.end - s.start for s in [*batch, segment])
        if batch and longest * (len(batch) + 1) > batch_size:
            yield batch
            batch = []
        batch.append(segment)
    if batch:
        yield batch


def in_recording(segment: Segment, hypothesis: Hypothesis) -> LongResult:
    """Return a segment's hypothesis with word times in the recording."""
    if hypothesis.word_times is not None:

        def moved(seconds: float) -> float:
            # a sum of floats may pass the end of the recording
            return min(segment.start + seconds, segment.end)

        times = [
            WordTime(word, moved(start), moved(end), confidence)
            for word, start, end, confidence in hypothesis.word_times
        ]
        hypothesis = hypothesis._replace(word_times=times)
    return LongResult(segment.start, segment.end, hypothesis)


def join_segments(results: Iterable[LongResult]) -> Hypothesis:
    """Join the hypotheses of a recording's segments to one."""
    hypotheses = [result.hypothesis for result in results]
    timed = [h.word_times for h in hypotheses if h.word_times is not None]
    return Hypothesis(
        text=" ".join(h.text for h in hypotheses if h.text),
        token=[token for h in hypotheses for token in h.token],
        token_int=[token for h in hypotheses for token in h.token_int],
        score=math.fsum(h.score for h in hypotheses),
        confidence=[c for h in hypotheses for c in h.confidence],
        word_times=[time for times in timed for time in times] if timed else None,
        llm_passes=sum(h.llm_passes for h in hypotheses),
        guards=sorted({guard for h in hypotheses for guard in h.guards}),
    )
