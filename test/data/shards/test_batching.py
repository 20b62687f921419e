"""Epochs of many readers, simulated: nothing is lost, lengths are mixed, batches full.

Utterances are numbers: their lengths are those of LibriSpeech and Common Voice, in LLM
positions.
"""

import random
from bisect import bisect
from collections import Counter
from itertools import chain, zip_longest

import numpy as np
import pytest

from espnet_dus.data.shards.batching import batches_by_length, cut_evenly, spread
from espnet_dus.data.shards.mix import Corpus, deal

# Seconds: every 20th part of LibriSpeech's utterances is between two of these.
READ = (1.65, 3.61, 4.89, 7.02, 9.32, 11.17, 11.98, 12.76, 13.15, 13.61, 14.04)
READ += (14.21, 14.38, 14.58, 14.77, 15.02, 15.31, 15.6, 15.9, 16.4, 17.19)
SHORT = 80  # LLM positions


def capacity(length):
    return 8192 // length


def make_corpora(rng, *counts, uneven=True):
    """Return corpora of shards, and the length of each utterance by shard."""
    corpora, lengths = [], {}
    for name, count in zip(("read", "prompted"), counts):
        shards, seconds, total = [], 0.0, 0
        for n in range(count):
            size = 1000 if n or not uneven else 123
            drawn = np.interp(rng.random(size), np.linspace(0, 1, 21), READ)
            if name == "prompted":
                drawn = np.clip(rng.normal(5.2, 1.6, size), 1.0, 15.0)
            tokens = np.clip(rng.normal(2.87 * drawn, 0.35 * drawn**0.5), 1, None)
            positions = (drawn * 100 - 3) // 8 + tokens.round() + 4
            lengths[f"{name}{n}"] = (np.ceil(positions / 16) * 16).astype(int)
            shards.append({"cuts": f"{name}{n}"})
            seconds, total = seconds + drawn.sum(), total + size
        corpora.append(Corpus(name, 1.0, shards, total, seconds))
    return corpora, lengths


def read(parts, lengths, seed):
    """Mix the parts of the corpora, as lhotse's `mux` does."""
    queues = []
    for of_corpus in parts:
        queue = []
        for part in of_corpus:
            name = part.shard["cuts"]
            stretch = part.slice(len(lengths[name]))
            queue += [(name, n) for n in range(stretch.start, stretch.stop)]
        queues.append(queue)
    order = [n for n, queue in enumerate(queues) for _ in queue]
    random.Random(seed).shuffle(order)
    queues = [iter(queue) for queue in queues]
    return (next(queues[n]) for n in order)


def epoch_of(corpora, lengths, ranks, readers, epochs_per_pass=1, epoch=1):
    """Return the batches of each rank, in their order."""
    of_ranks = []
    for rank in range(ranks):
        of_readers = []
        for reader in range(readers):
            number, count = reader * ranks + rank, ranks * readers
            parts = deal(corpora, epoch, epochs_per_pass, 0, number, count)
            batches = batches_by_length(
                read(parts, lengths, number),
                lambda utterance: lengths[utterance[0]][utterance[1]],
                capacity,
                3000,
                number,
                0.3,
            )
            of_readers.append(list(batches))
        in_turn = chain.from_iterable(zip_longest(*of_readers))
        of_ranks.append([batch for batch in in_turn if batch is not None])
    return of_ranks


@pytest.mark.parametrize(
    "ranks, readers, counts",
    [(1, 1, (160, 40)), (2, 1, (200, 40)), (8, 4, (250, 60)), (24, 2, (190, 40))]
    + [(64, 4, (300, 70))],
)
def test_an_epoch_has_every_utterance_once_and_lengths_are_mixed(
    ranks, readers, counts
):
    corpora, lengths = make_corpora(np.random.default_rng(0), *counts)
    epoch = epoch_of(corpora, lengths, ranks, readers)
    seen = Counter(u for batches in epoch for batch in batches for u in batch)
    assert seen == Counter((s, n) for s, of in lengths.items() for n in range(len(of)))

    sizes = [[lengths[s][n] for s, n in b] for batches in epoch for b in batches]
    filled = sum(map(sum, sizes)) / sum(max(size) * len(size) for size in sizes)
    assert filled > 0.95
    assert all(max(size) * len(size) <= 8192 for size in sizes)
    assert min(map(sum, sizes)) >= 8192 / 2

    # a rank that has no more batches waits for the others
    counts = [len(batches) for batches in epoch]
    assert max(counts) <= 1.04 * np.mean(counts)

    every = np.concatenate(sizes)
    for tenth in (0, 5, 9):
        found = []
        for batches in epoch:
            first, last = (len(batches) * n // 10 for n in (tenth, tenth + 1))
            found += [lengths[s][n] for b in batches[first:last] for s, n in b]
        share = np.mean(np.array(found) < SHORT) / np.mean(every < SHORT)
        assert 0.8 <= share <= 1.2, (tenth, share)


@pytest.mark.parametrize("ranks, readers", [(1, 1), (8, 4), (24, 2), (64, 4)])
@pytest.mark.parametrize("shards", [1, 3, 5])
def test_fewer_shards_than_readers_lose_nothing(ranks, readers, shards):
    corpora, lengths = make_corpora(np.random.default_rng(0), shards, 2)
    seen = Counter()
    for epoch in (1, 2):
        of_ranks = epoch_of(corpora, lengths, ranks, readers, 2, epoch)
        seen.update(u for batches in of_ranks for batch in batches for u in batch)
    assert seen == Counter((s, n) for s, of in lengths.items() for n in range(len(of)))


# -- parts -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 12, 13, 100, 999])
def test_a_block_is_cut_into_batches_that_are_equally_full(count):
    lengths = sorted(random.Random(count).choices(range(16, 500), k=count))
    batches = cut_evenly(lengths, lambda length: length, lambda length: 3000 // length)
    assert list(chain(*batches)) == lengths
    assert all(len(batch) * max(batch) <= 3000 for batch in batches)
    if len(batches) > 1:
        assert min(map(sum, batches)) >= (1500 if count > 20 else 1200)


def test_batches_of_similar_length_are_far_from_each_other():
    for start in (0.0, 0.25, 0.9):
        order = spread(list(range(40)), start)
        assert sorted(order) == list(range(40))
        assert abs(order.index(0) - start * 40) <= 1
        places = [order.index(n) for n in range(40)]
        gaps = [min(abs(a - b), 40 - abs(a - b)) for a, b in zip(places, places[1:])]
        assert min(gaps) >= 8


def test_no_more_is_read_than_is_held():
    read_so_far = []

    def utterances():
        for n in range(10000):
            read_so_far.append(n)
            yield 16 + n % 480

    given = 0
    for batch in batches_by_length(utterances(), lambda n: n, capacity, 1000):
        given += len(batch)
        assert len(read_so_far) - given <= 1000
    assert given == 10000


def test_bounds_of_lengths_are_kept():
    sizes = {64: 9, 128: 4, 512: 2}
    bounds = sorted(sizes)
    lengths = random.Random(0).choices(range(16, 513), k=3000)
    for batch in batches_by_length(
        lengths, lambda n: n, lambda n: sizes[bounds[bisect(bounds, n - 1)]], 500
    ):
        assert len(batch) <= sizes[bounds[bisect(bounds, max(batch) - 1)]]
