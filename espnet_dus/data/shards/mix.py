"""Which shards an epoch reads: corpora with weights, passes, epochs, processes.

A weight says how often a corpus is seen in a pass over the data: 1 once, 2 twice, 0.5
every second shard, another half in each pass. A pass is cut into `epochs_per_pass`
epochs, an epoch's shards are dealt out to the processes that read. All of it follows
from the seed and the epoch's number, so that each process finds its own share alone,
and no two of them read the same.
"""

import random
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Sequence, Union

import yaml

Shard = Dict[str, str]


class Corpus(NamedTuple):
    """Shards that have one weight.

    Attributes:
        name: Its directory.
        weight: How often it is seen in a pass.
        shards: Their files by field, as lhotse names them.
    """

    name: str
    weight: float
    shards: Sequence[Shard]


def read_weights(shards: Union[str, Mapping[str, float]]) -> Dict[str, float]:
    """Read the option `shards`.

    Args:
        shards: A directory of shards, a mapping from directories to weights, or a YAML
            file that holds such a mapping.

    Returns:
        Weights by directory; those of weight 0 are left out.

    Raises:
        ValueError: It is none of these, or a weight is no number from 0 on.
    """
    where = "streaming_conf: shards"
    if isinstance(shards, str) and shards.endswith((".yaml", ".yml")):
        where = shards
        if not Path(shards).is_file():
            raise ValueError(f"{shards}: no such file")
        shards = yaml.safe_load(Path(shards).read_text(encoding="utf-8"))
    if isinstance(shards, str):
        return {shards: 1.0}
    if not isinstance(shards, Mapping) or not shards:
        raise ValueError(
            f"{where}: expected a directory of shards, or directories with weights, "
            f"got {shards!r}"
        )
    for name, weight in shards.items():
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight < float("inf"):
            raise ValueError(
                f"{where}: {name}: expected a weight from 0 on, got {weight!r}"
            )
    weights = {str(name): float(weight) for name, weight in shards.items() if weight}
    if not weights:
        raise ValueError(f"{where}: all weights are 0")
    return weights


def shards_of_epoch(
    corpora: Sequence[Corpus], epoch: int, epochs_per_pass: int, seed: int
) -> List[List[Shard]]:
    """List the shards that all processes together read in an epoch.

    Args:
        corpora: What there is.
        epoch: From 1.
        epochs_per_pass: Epochs that see the data once.
        seed: For the order.

    Returns:
        The shards of each corpus, in random order.
    """
    number, part = divmod(epoch - 1, epochs_per_pass)
    chosen = []
    for place, corpus in enumerate(corpora):
        # strings: numbers that are added up make the same order in different epochs
        rng = random.Random(f"{seed} {place} {number}")
        shards = list(corpus.shards) * int(corpus.weight)
        shards += _some(corpus, number, f"{seed} {place}")
        rng.shuffle(shards)
        chosen.append(shards[part::epochs_per_pass])
    return chosen


def _some(corpus: Corpus, number: int, seed: str) -> List[Shard]:
    """Pick the shards that a weight's fraction stands for, other ones in each pass."""
    count = len(corpus.shards)
    share = corpus.weight - int(corpus.weight)
    order = list(corpus.shards)
    random.Random(seed).shuffle(order)
    first, last = round(number * share * count), round((number + 1) * share * count)
    return [order[place % count] for place in range(first, last)]


def deal(
    shards: Sequence[Sequence[Shard]], place: int, num_places: int
) -> List[List[Shard]]:
    """Give a process its share of an epoch's shards.

    Args:
        shards: Those of each corpus.
        place: Of the process, from 0.
        num_places: How many processes there are, on all nodes together.
    """
    dealt, share = 0, []
    for of_corpus in shards:
        # what does not come out even falls to another process in each corpus
        share.append(list(of_corpus[(place - dealt) % num_places :: num_places]))
        dealt += len(of_corpus)
    return share
