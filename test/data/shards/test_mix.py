"""Weights, passes, epochs and processes: which shards are read, as counts."""

from collections import Counter

import pytest

from espnet_dus.data.shards.mix import Corpus, deal, read_weights, shards_of_epoch


def corpus(name, count, weight):
    return Corpus(name, weight, [{"cuts": f"{name}{n}"} for n in range(count)])


def names(shards):
    return [shard["cuts"] for of_corpus in shards for shard in of_corpus]


CORPORA = [corpus("big", 50, 1.0), corpus("rare", 7, 3.0), corpus("part", 20, 0.25)]


def test_a_weight_is_how_often_a_corpus_is_seen_in_a_pass():
    counts = Counter(names(shards_of_epoch(CORPORA, 1, epochs_per_pass=1, seed=0)))
    assert all(counts[f"big{n}"] == 1 for n in range(50))
    assert all(counts[f"rare{n}"] == 3 for n in range(7))
    assert sum(counts[f"part{n}"] for n in range(20)) == 5


def test_fractions_see_all_of_a_corpus_in_turn():
    seen = Counter()
    for epoch in range(1, 5):
        seen.update(names(shards_of_epoch(CORPORA[2:], epoch, 1, seed=0)))
    assert seen == Counter({f"part{n}": 1 for n in range(20)})


@pytest.mark.parametrize("epochs_per_pass", [1, 3, 7])
def test_the_epochs_of_a_pass_share_its_shards(epochs_per_pass):
    def of_pass(number, seed=0):
        first = number * epochs_per_pass + 1
        epochs = range(first, first + epochs_per_pass)
        parts = [shards_of_epoch(CORPORA, e, epochs_per_pass, seed) for e in epochs]
        return [name for part in parts for name in names(part)]

    assert Counter(of_pass(0)) == Counter(names(shards_of_epoch(CORPORA, 1, 1, 0)))
    assert of_pass(0) != of_pass(1) and of_pass(0) != of_pass(0, seed=1)
    assert of_pass(0) == of_pass(0)


@pytest.mark.parametrize("num_places", [1, 4, 9, 60])
def test_processes_share_an_epochs_shards_and_none_has_two_more(num_places):
    shards = shards_of_epoch(CORPORA, 1, 1, seed=0)
    shares = [names(deal(shards, place, num_places)) for place in range(num_places)]
    assert Counter(name for share in shares for name in share) == Counter(names(shards))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_weights_come_from_a_directory_a_mapping_or_a_file(tmp_path):
    assert read_weights("dump/shar/train") == {"dump/shar/train": 1.0}
    assert read_weights({"a": 2, "b": 0, "c": 0.5}) == {"a": 2.0, "c": 0.5}
    (tmp_path / "mix.yaml").write_text("# hours\na: 1.5\nb: 0\n")
    assert read_weights(f"{tmp_path}/mix.yaml") == {"a": 1.5}
    (tmp_path / "mix.yaml").write_text("a: many\n")
    with pytest.raises(ValueError, match="mix.yaml: a: expected a weight .*'many'"):
        read_weights(f"{tmp_path}/mix.yaml")
