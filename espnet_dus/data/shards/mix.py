"""What an epoch reads: corpora with weights, passes over the data, epochs, readers.

A weight is the number of times that a corpus is read in a pass: 1 once, 2 twice, 0.5
every second shard, the other half in the next pass. The shards of a pass form one long
list, in which the corpora are evenly mixed. It is cut into parts of equal duration: one
for each reader in each of the `epochs_per_pass` epochs. Cuts may fall inside a shard,
so any number of readers share any number of shards evenly, and read each utterance
once. All of it follows from the seed, so each reader finds its own part alone.
"""

import random
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Sequence, Tuple, Union

from espnet_dus.io import read_yaml

Shard = Dict[str, str]


class Corpus(NamedTuple):
    """Shards that have one weight.

    Attributes:
        name: Its directory.
        weight: Number of times it is read in a pass.
        shards: Their files by field, as lhotse names them.
        num_utterances: Number of utterances in the shards.
        seconds: Duration of the shards.
    """

    name: str
    weight: float
    shards: Sequence[Shard]
    num_utterances: int
    seconds: float


class Part(NamedTuple):
    """A stretch of a shard.

    Attributes:
        shard: Its files by field.
        begin: Where it begins, as a share of the shard's utterances.
        end: Where it ends.
    """

    shard: Shard
    begin: float = 0.0
    end: float = 1.0

    def slice(self, num_utterances: int) -> slice:
        """Return the utterances in the stretch; those of all stretches are all."""
        return slice(
            round(self.begin * num_utterances), round(self.end * num_utterances)
        )


def read_weights(shards: Union[str, Mapping[str, float]]) -> Dict[str, float]:
    """Read the option `shards`.

    Args:
        shards: A directory of shards, a mapping from directories to weights, or a YAML
            file that holds such a mapping.

    Returns:
        Weights by directory; those of weight 0 are left out.

    Raises:
        ValueError: It is none of these, or a weight is not a number from 0 on.
    """
    where = "streaming_conf: shards"
    if isinstance(shards, str) and shards.endswith((".yaml", ".yml")):
        where = shards
        if not Path(shards).is_file():
            raise ValueError(f"{shards}: no such file")
        shards = read_yaml(shards)
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


def shards_of_pass(
    corpora: Sequence[Corpus], number: int, seed: int
) -> List[Tuple[int, Shard]]:
    """List the shards of a pass, each with the index of its corpus.

    Args:
        corpora: The mix.
        number: Of the pass, from 0.
        seed: For the order.
    """
    placed = []
    for index, corpus in enumerate(corpora):
        # a string: a sum of numbers would give different passes the same order
        rng = random.Random(f"{seed} {index} {number}")
        shards = list(corpus.shards) * int(corpus.weight)
        shards += _some(corpus, number, f"{seed} {index}")
        rng.shuffle(shards)
        first = rng.random()
        placed += [((n + first) / len(shards), index, s) for n, s in enumerate(shards)]
    placed.sort(key=lambda entry: entry[:2])
    return [(index, shard) for _, index, shard in placed]


def _some(corpus: Corpus, number: int, seed: str) -> List[Shard]:
    """Pick the shards of a weight's fractional part, different ones in each pass."""
    count = len(corpus.shards)
    share = corpus.weight - int(corpus.weight)
    order = list(corpus.shards)
    random.Random(seed).shuffle(order)
    first, last = round(number * share * count), round((number + 1) * share * count)
    return [order[place % count] for place in range(first, last)]


def deal(
    corpora: Sequence[Corpus],
    epoch: int,
    epochs_per_pass: int,
    seed: int,
    reader: int,
    num_readers: int,
) -> List[List[Part]]:
    """Return what a reader reads in an epoch.

    Args:
        corpora: The mix.
        epoch: From 1.
        epochs_per_pass: Epochs that read the data once.
        seed: For the order.
        reader: From 0.
        num_readers: Number of readers, of all processes together.

    Returns:
        For each corpus its parts, possibly none.
    """
    number, epoch_of_pass = divmod(epoch - 1, epochs_per_pass)
    shards = shards_of_pass(corpora, number, seed)
    seconds = [
        corpora[index].seconds / len(corpora[index].shards) for index, _ in shards
    ]
    unit = sum(seconds) / (epochs_per_pass * num_readers)
    first = epoch_of_pass * num_readers + reader
    begin, end = first * unit, (first + 1) * unit
    if first + 1 == epochs_per_pass * num_readers:
        end = float("inf")  # whatever the rounding of sums
    parts: List[List[Part]] = [[] for _ in corpora]
    place = 0.0
    for (index, shard), length in zip(shards, seconds):
        low, high = max(begin - place, 0.0), min(end - place, length)
        if low < high:
            parts[index].append(Part(shard, low / length, high / length))
        place += length
    return parts
