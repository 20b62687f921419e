"""From the segments of a recording to its transcript.

Segments do not overlap and end in silence (or, in speech that goes on for too long,
where it is quietest): their transcripts are joined as they stand, no words are lost or
said twice.
"""

import math
from typing import Iterable, Iterator, List, NamedTuple

from espnet_dus.search.result import Hypothesis
from espnet_dus.search.segmentation import Segment
from espnet_dus.search.timing import shift


class LongResult(NamedTuple):
    """The transcript of a segment.

    Attributes:
        start: In seconds from the start of the recording.
        end: Likewise.
        hypothesis: Its word times, if there are any, are the recording's too.
    """

    start: float
    end: float
    hypothesis: Hypothesis


def batches(segments: Iterable[Segment], batch_size: float) -> Iterator[List[Segment]]:
    """Take segments together, in their order, until they fill a batch.

    Args:
        segments: Of a recording.
        batch_size: Seconds that a batch, padded to its longest, may have; a segment
            longer than that goes alone.

    Yields:
        At least one segment.
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
    """Give a segment's hypothesis with word times in the recording."""
    if hypothesis.word_times is not None:
        times = shift(hypothesis.word_times, segment.start)
        hypothesis = hypothesis._replace(word_times=times)
    return LongResult(segment.start, segment.end, hypothesis)


def join(results: Iterable[LongResult]) -> Hypothesis:
    """Make one hypothesis of a recording's segments: as one utterance would have."""
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
