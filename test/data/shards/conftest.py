"""A dump of audio, and its shards read back."""

import pytest
from lhotse import CutSet

from espnet_dus.data.format import format_data
from espnet_dus.data.shards.shar import list_shards


@pytest.fixture
def durations():
    """Seconds of each utterance."""
    return {key: 0.1 + 0.01 * n for n, key in enumerate("abcdefg")}


@pytest.fixture
def dump(make_data_dir, durations, tmp_path):
    format_data(make_data_dir(durations), tmp_path / "dump")
    return tmp_path / "dump"


@pytest.fixture
def read_back():
    """Return a function that reads a directory of audio shards, cuts by id."""

    def read(shard_dir):
        fields = {"cuts": [], "recording": []}
        for shard in list_shards(shard_dir):
            for name, path in shard.items():
                fields[name].append(path)
        return {cut.id: cut for cut in CutSet.from_shar(fields=fields)}

    return read
