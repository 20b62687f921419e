"""States on disk: whole or not taken, the newest kept, of this training only."""

import subprocess

import pytest
import torch
from training_helpers import Killed

from espnet_dus.training import checkpoint_files
from espnet_dus.training.step_checkpoint import StepCheckpoints


@pytest.fixture
def checkpoints(tmp_path):
    return StepCheckpoints(tmp_path / "states", keep=2)


def names(checkpoints):
    return sorted(path.name for path in checkpoints.directory.glob("*"))


def test_the_newest_is_loaded_and_the_oldest_are_removed(checkpoints):
    assert checkpoints.load(1) is None
    for n in (1, 2, 10):
        checkpoints.save(1, n, {"weight": torch.tensor(n)}, {"batch": n})
    assert names(checkpoints) == ["0001_00000002", "0001_00000010"]
    assert checkpoints.load(1) == ({"weight": torch.tensor(10)}, {"batch": 10})
    checkpoints.clear()
    assert not checkpoints.directory.exists()


def test_states_of_other_epochs_are_removed(checkpoints):
    for epoch in (1, 3):
        checkpoints.save(epoch, 1, {"epoch": epoch}, {})
    assert checkpoints.load(2) is None
    assert names(checkpoints) == []


def test_checksums_are_those_of_sha256sum(checkpoints):
    place = checkpoints.save(1, 1, {"weight": torch.ones(999)}, {})
    command = ["sha256sum", "--check", "--strict", *place.glob("*.sha256")]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK\n") == 2, done


@pytest.mark.parametrize("at", ["save", "checksum"])
def test_a_process_killed_while_it_saves_leaves_the_state_before(
    checkpoints, monkeypatch, at
):
    def die(*_):
        raise Killed

    checkpoints.save(1, 1, {"n": 1}, {})
    with monkeypatch.context() as patch:
        if at == "save":
            patch.setattr(checkpoint_files._HashingWriter, "flush", die)
        else:
            patch.setattr(checkpoint_files, "write_text", die)
        with pytest.raises(Killed):
            checkpoints.save(1, 2, {"n": 2}, {})
    assert checkpoints.load(1)[0] == {"n": 1}
