"""Word times from the CTC head, and the files that carry them: CTM and SRT.

The final transcript, whichever search wrote it, is aligned to the CTC head's
posteriors. CTC knows where a unit stands, not how long it lasts: its peak comes early
in a word and is mostly one position long. A word is therefore given half a position
before its first unit and up to a quarter of a second of the blanks behind its last one.
(Found on AN4's test set with a model in training, against pocketsphinx' forced
alignment of 284 words: the ends are off by 0.07 s in the mean, and by 0.22 s as they
come; the starts by 0.06 s and 0.08 s.)

A word that CTC cannot place is no error. Its units are unknown to the head, or the
whole transcript has more units than the speech has positions: such words share the time
between their neighbours (or the whole utterance) evenly, with a confidence of 0.

Dimensions: S speech positions, U CTC units.
"""

import itertools
import math
from typing import Iterable, List, NamedTuple, Optional

import torch
from torchaudio.functional import forced_align, merge_tokens

from espnet_dus.data.ctc_units import (
    BLANK,
    SPACE,
    UNKNOWN,
    CTCUnits,
)

LEAD_POSITIONS = 0.5
TAIL_SECONDS = 0.25


class WordTime(NamedTuple):
    """A word and where it was said.

    Attributes:
        word: As in the transcript.
        start: In seconds from the start of the audio.
        end: Likewise.
        confidence: Geometric mean of the CTC posteriors of its frames, from 0 to 1;
            0 where CTC could not place the word and its time is a guess.
    """

    word: str
    start: float
    end: float
    confidence: float


class _Span(NamedTuple):
    """The speech positions of a word, end exclusive, and its mean log-posterior."""

    start: float
    end: float
    log_posterior: float


def word_times(
    log_probs_SU: torch.Tensor, text: str, units: CTCUnits, seconds: float
) -> List[WordTime]:
    """Align a transcript to the CTC head's posteriors.

    Args:
        log_probs_SU: (S, U) log-probabilities of one utterance, without padding.
        text: Its transcript.
        units: The head's.
        seconds: Of one speech position.

    Returns:
        The words of the transcript, in time, none overlapping the next.
    """
    words = text.split()
    unit_ids = [[u for u in units.encode(w) if u != UNKNOWN] for w in words]
    spans = _align(log_probs_SU, unit_ids, units.ids.get(SPACE))
    spans = _widen(spans, len(log_probs_SU), TAIL_SECONDS / seconds)
    times: List[WordTime] = []
    groups = itertools.groupby(range(len(words)), lambda i: spans[i] is None)
    for is_guess, group in groups:
        group = list(group)
        if not is_guess:
            times += [
                WordTime(
                    words[i],
                    spans[i].start * seconds,
                    spans[i].end * seconds,
                    math.exp(spans[i].log_posterior),
                )
                for i in group
            ]
            continue
        start = times[-1].end if times else 0.0
        following = spans[group[-1] + 1] if group[-1] + 1 < len(words) else None
        end = (following.start if following else len(log_probs_SU)) * seconds
        share = (end - start) / len(group)
        times += [
            WordTime(words[i], start + n * share, start + (n + 1) * share, 0.0)
            for n, i in enumerate(group)
        ]
    return times


def _align(
    log_probs_SU: torch.Tensor, unit_ids: List[List[int]], space: Optional[int]
) -> List[Optional[_Span]]:
    """Give the span of each word's units; None where they cannot be aligned."""
    path: List[int] = []
    owners: List[Optional[int]] = []  # the word that a unit of the path belongs to
    for word, ids in enumerate(unit_ids):
        if path and ids and space is not None:
            path.append(space)
            owners.append(None)
        path += ids
        owners += [word] * len(ids)
    repeats = sum(a == b for a, b in itertools.pairwise(path))
    if not path or len(path) + repeats > len(log_probs_SU):
        return [None] * len(unit_ids)
    # on the CPU: the alignment is a loop over frames, and one utterance at a time
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
        spans.append(_Span(own[0].start, own[-1].end, mean))
    return spans


def _widen(
    spans: List[Optional[_Span]], num_positions: int, tail: float
) -> List[Optional[_Span]]:
    """Give words the blanks around their peaks, up to their neighbours."""
    first, last = _Span(0, 0, 0.0), _Span(num_positions, num_positions, 0.0)
    early = [
        (
            span
            if None in (left, span)
            else span._replace(start=max(span.start - LEAD_POSITIONS, left.end))
        )
        for left, span in itertools.pairwise([first, *spans])
    ]
    return [
        (
            span
            if None in (span, right)
            else span._replace(end=min(span.end + tail, right.start))
        )
        for span, right in itertools.pairwise([*early, last])
    ]


def shift(times: Iterable[WordTime], seconds: float) -> List[WordTime]:
    """Move words in time: from a segment's to the recording's."""
    return [
        WordTime(w, start + seconds, end + seconds, c) for w, start, end, c in times
    ]
