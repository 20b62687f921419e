"""Word times from the CTC head.

The final transcript, whichever search wrote it, is aligned to the CTC head's
posteriors. A speech position is placed at the centre of the audio that its convolutions
and windows cover (`data.lengths.position_times`).

CTC shows where a unit is, not how long it lasts: its peak comes early in a word and is
mostly one position wide. A word therefore starts an eighth of a second before the
centre of its first unit and ends at most a quarter of a second after that of its last,
but never inside another word. These are the edges fitted on AN4's test set to
pocketsphinx' forced alignment of 284 words, restated relative to the centres: the mean
error was 0.07 s for ends and 0.06 s for starts.

A word that CTC cannot place is not an error. Either its units are unknown to the head,
or the whole transcript has more units than the speech has positions. Such words share
the time between their neighbours (or the whole utterance) evenly, with confidence 0.

Dimensions: S speech positions, U CTC units.
"""

import itertools
import math
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torchaudio.functional import forced_align, merge_tokens

from espnet_dus.data.ctc_units import BLANK, SPACE, UNKNOWN, CTCUnits
from espnet_dus.data.lengths import PositionTimes

LEAD_SECONDS = 0.125  # this and the next are fitted on AN4, see above
TAIL_SECONDS = 0.25


class WordTime(NamedTuple):
    """A word and when it was said."""

    word: str  # as in the transcript
    start: float  # in seconds from the start of the audio, as `end`
    end: float
    # Geometric mean of the CTC posteriors of its frames, from 0 to 1; 0 where CTC could
    # not place the word and its time is a guess.
    confidence: float


class _Span(NamedTuple):
    """The speech positions of a word (`last` inclusive) and its mean log-posterior."""

    first: int
    last: int
    log_posterior: float


def word_times(
    log_probs_SU: torch.Tensor,
    text: str,
    units: CTCUnits,
    positions: PositionTimes,
    duration: float,
) -> List[WordTime]:
    """Align a transcript to the CTC head's posteriors.

    Args:
        log_probs_SU: (S, U) log-probabilities of one utterance, without padding.
        text: Its transcript.
        units: The head's.
        positions: The time of each speech position.
        duration: Duration of the audio in seconds.

    Returns:
        The words of the transcript in time order, from 0 to `duration`, none
        overlapping the next.
    """
    words = text.split()
    unit_ids = [[u for u in units.encode(w) if u != UNKNOWN] for w in words]
    spans = _align(log_probs_SU, unit_ids, units.ids.get(SPACE))
    edges = _edges(spans, positions, duration)
    times: List[WordTime] = []
    for is_guess, group in itertools.groupby(range(len(words)), lambda i: not spans[i]):
        group = list(group)
        if not is_guess:
            times += [
                WordTime(words[i], *edges[i], math.exp(spans[i].log_posterior))
                for i in group
            ]
            continue
        start = times[-1].end if times else 0.0
        end = edges[group[-1] + 1][0] if group[-1] + 1 < len(words) else duration
        share = (end - start) / len(group)
        times += [
            WordTime(words[i], start + n * share, start + (n + 1) * share, 0.0)
            for n, i in enumerate(group)
        ]
    return times


def _edges(
    spans: List[Optional[_Span]], positions: PositionTimes, duration: float
) -> List[Optional[Tuple[float, float]]]:
    """Return start and end of each word in seconds: its units and blanks around them.

    Words that adjoin meet halfway between their units. No blanks are taken from a word
    that could not be placed.
    """
    half = positions.step / 2
    lead, tail = max(LEAD_SECONDS, half), max(TAIL_SECONDS, half)
    starts: Dict[int, float] = {}
    ends: Dict[int, float] = {}
    earliest = 0.0
    for n, span in enumerate(spans):
        if span is None:
            continue
        first, last = (positions.first + i * positions.step for i in span[:2])
        after_guess = n > 0 and spans[n - 1] is None
        before_guess = n + 1 < len(spans) and spans[n + 1] is None
        starts[n] = max(first - (half if after_guess else lead), earliest)
        ends[n] = min(last + (half if before_guess else tail), duration)
        if n - 1 in ends:
            ends[n - 1] = min(ends[n - 1], starts[n])
        earliest = last + half
    return [(starts[n], ends[n]) if n in ends else None for n in range(len(spans))]


def _align(
    log_probs_SU: torch.Tensor, unit_ids: List[List[int]], space: Optional[int]
) -> List[Optional[_Span]]:
    """Return the span of each word's units; None where they cannot be aligned."""
    path: List[int] = []
    owners: List[Optional[int]] = []  # the word of each unit of the path; None: space
    for word, ids in enumerate(unit_ids):
        if path and ids and space is not None:
            path.append(space)
            owners.append(None)
        path += ids
        owners += [word] * len(ids)
    repeats = sum(a == b for a, b in itertools.pairwise(path))
    if not path or len(path) + repeats > len(log_probs_SU):
        return [None] * len(unit_ids)
    # on the CPU: the alignment loops over frames, one utterance at a time
    log_probs_1SU = log_probs_SU.detach().float().cpu()[None]
    labels_1S, scores_1S = forced_align(
        log_probs_1SU.contiguous(), torch.tensor([path]), blank=BLANK
    )
    found = merge_tokens(labels_1S[0], scores_1S[0], BLANK)
    spans: List[Optional[_Span]] = []
    for word in range(len(unit_ids)):
        own = [span for span, owner in zip(found, owners) if owner == word]
        if not own:
            spans.append(None)
            continue
        frames = sum(len(span) for span in own)
        mean = sum(span.score * len(span) for span in own) / frames
        spans.append(_Span(own[0].start, own[-1].end - 1, mean))
    return spans
