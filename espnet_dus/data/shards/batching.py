"""Batches of utterances of similar length, out of a stream.

The stream is read in blocks of a few thousand utterances. A block is sorted by length
and cut into batches that are equally full; while these are used, the next block is
read. So every block, and any part of an epoch that holds several, has the same mix of
lengths as the data. lhotse's `DynamicBucketingSampler` takes from a bucket only when
that holds a full batch: short utterances, of which a batch holds hundreds, come late in
an epoch, and the rest of each bucket at its end, in batches that are nearly empty.
"""

from itertools import chain, islice
from math import ceil
from typing import Callable, Iterable, Iterator, List, Sequence, TypeVar

T = TypeVar("T")

# Multiples of the golden ratio modulo 1 spread most evenly (Weyl sequence).
GOLDEN = (5**0.5 - 1) / 2


def batches_by_length(
    utterances: Iterable[T],
    length_of: Callable[[T], int],
    capacity: Callable[[int], int],
    block_size: int,
    reader: int = 0,
    phase: float = 0.0,
) -> Iterator[List[T]]:
    """Gather utterances into batches.

    Args:
        utterances: They may be read lazily.
        length_of: Returns the length of an utterance.
        capacity: Returns how many utterances fit into a batch, by the longest length.
        block_size: Number of utterances that are held at a time.
        reader: Number of the reader. Readers have their batches of short utterances at
            different times, spread as evenly as multiples of an irrational number.
        phase: In [0, 1): when the first reader has them.

    Yields:
        The utterances of a batch, the shortest first. No batch is less than half full,
        unless all utterances together are.
    """
    utterances = iter(utterances)
    block, has_ended = list(islice(utterances, block_size)), False
    while block:
        # what is left for the last block depends on the place of the first batch before
        start = (phase + reader * (3**0.5 if has_ended else 2**0.5)) % 1
        batches = cut_evenly(sorted(block, key=length_of), length_of, capacity)
        batches = spread(batches, start)
        block, num_used = [], 0
        while batches:
            batch = batches.pop(0)
            yield batch
            num_used += len(batch)
            if not has_ended:
                block += islice(utterances, num_used - len(block))
                has_ended = len(block) < num_used
                if has_ended and block:  # too small for a block: it joins what is left
                    block += chain.from_iterable(batches)
                    break


def spread(batches: Sequence[T], start: float) -> List[T]:
    """Order batches so that those of similar length are far from each other.

    Args:
        batches: In ascending order of their lengths.
        start: In [0, 1): place of the first of them, as a share of all.
    """
    order = sorted(range(len(batches)), key=lambda n: n * GOLDEN % 1)
    shift = int((1 - start) * len(batches))
    return [batches[n] for n in order[shift:] + order[:shift]]


def cut_evenly(
    utterances: Sequence[T],
    length_of: Callable[[T], int],
    capacity: Callable[[int], int],
) -> List[Sequence[T]]:
    """Cut sorted utterances into as few batches as possible, all of them equally full.

    Args:
        utterances: In ascending order of their lengths.
        length_of: Returns the length of an utterance.
        capacity: Returns how many fit into a batch, by the longest length.
    """
    lengths = [length_of(utterance) for utterance in utterances]
    capacities = [capacity(length) for length in lengths]
    bounds = _cut(capacities, 1.0)
    low, high = 0.5, 1.0  # of the smallest share that needs no more batches
    for _ in range(10):
        middle = (low + high) / 2
        narrower = _cut(capacities, middle)
        if len(narrower) == len(bounds):
            bounds, high = narrower, middle
        else:
            low = middle
    bounds.reverse()
    if len(bounds) > 2:  # the shortest utterances are what was left over
        end = bounds[1]
        surplus = sum(lengths[end : bounds[2]]) - sum(lengths[:end])
        while surplus > 2 * lengths[end] and end < capacities[end]:
            surplus -= 2 * lengths[end]
            end += 1
        bounds[1] = end
    return [utterances[first:last] for first, last in zip(bounds, bounds[1:])]


def _cut(capacities: Sequence[int], share: float) -> List[int]:
    """Return the ends of the batches, the longest utterances first."""
    bounds, place = [len(capacities)], float(len(capacities))
    while bounds[-1] > 0:
        place -= max(share * capacities[bounds[-1] - 1], 1)
        bounds.append(max(ceil(place), 0))
    return bounds
