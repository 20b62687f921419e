"""Weights, passes, epochs and readers: what is read, as counts."""

from collections import Counter

import pytest

from espnet_dus.data.shards.mix import Corpus, deal, read_weights, shards_of_pass


def corpus(name, count, weight, seconds=3600.0):
    shards = [{"cuts": f"{name}{n}"} for n in range(count)]
    return Corpus(name, weight, shards, 100 * count, seconds * count)


def names(shards):
    return [shard["cuts"] for _, shard in shards]


CORPORA = [corpus("big", 50, 1.0), corpus("rare", 7, 3.0), corpus("part", 20, 0.25)]


def test_a_weight_is_how_often_a_corpus_is_seen_in_a_pass():
    counts = Counter(names(shards_of_pass(CORPORA, 0, seed=0)))
    assert all(counts[f"big{n}"] == 1 for n in range(50))
    assert all(counts[f"rare{n}"] == 3 for n in range(7))
    assert sum(counts[f"part{n}"] for n in range(20)) == 5


def test_fractions_see_all_of_a_corpus_in_turn():
    seen = Counter()
    for number in range(4):
        seen.update(names(shards_of_pass(CORPORA[2:], number, seed=0)))
    assert seen == Counter({f"part{n}": 1 for n in range(20)})


def test_each_pass_has_an_order_of_its_own_in_which_corpora_are_evenly_mixed():
    order = names(shards_of_pass(CORPORA, 0, seed=0))
    assert order != names(shards_of_pass(CORPORA, 1, seed=0))
    assert order != names(shards_of_pass(CORPORA, 0, seed=1))
    assert order == names(shards_of_pass(CORPORA, 0, seed=0))
    rare = [n for n, name in enumerate(order) if name.startswith("rare")]
    gaps = [b - a for a, b in zip(rare, rare[1:])]
    assert len(order) == 76 and max(gaps) <= 6  # 21 of 76: every third or fourth


SIZES = {"big": 1000, "rare": 900, "part": 37}


@pytest.mark.parametrize("epochs_per_pass", [1, 3, 200])
@pytest.mark.parametrize("num_readers", [1, 4, 9, 256])
def test_readers_and_epochs_of_a_pass_share_each_utterance(
    epochs_per_pass, num_readers
):
    corpora = [
        corpus("big", 50, 1.0),
        corpus("rare", 7, 3.0, seconds=900.0),
        corpus("part", 20, 0.25, seconds=37.0),
    ]
    seen, seconds = Counter(), Counter()
    for epoch in range(1, epochs_per_pass + 1):
        for reader in range(num_readers):
            parts = deal(corpora, epoch, epochs_per_pass, 0, reader, num_readers)
            for of_corpus, source in zip(parts, corpora):
                for part in of_corpus:
                    stretch = part.slice(SIZES[source.name])
                    utterances = range(stretch.start, stretch.stop)
                    seen.update((part.shard["cuts"], u) for u in utterances)
                    length = source.seconds / len(source.shards)
                    seconds[epoch, reader] += (part.end - part.begin) * length
    whole = Counter()
    for index, shard in shards_of_pass(corpora, 0, 0):
        name = corpora[index].name
        whole.update((shard["cuts"], u) for u in range(SIZES[name]))
    assert seen == whole
    assert max(seconds.values()) == pytest.approx(min(seconds.values()), rel=1e-6)


def test_weights_come_from_a_directory_a_mapping_or_a_file(tmp_path):
    assert read_weights("dump/shar/train") == {"dump/shar/train": 1.0}
    assert read_weights({"a": 2, "b": 0, "c": 0.5}) == {"a": 2.0, "c": 0.5}
    (tmp_path / "mix.yaml").write_text("# hours\na: 1.5\nb: 0\n")
    assert read_weights(f"{tmp_path}/mix.yaml") == {"a": 1.5}
    (tmp_path / "mix.yaml").write_text("a: many\n")
    with pytest.raises(ValueError, match="mix.yaml: a: expected a weight .*'many'"):
        read_weights(f"{tmp_path}/mix.yaml")
