"""A file that is saved is whole or the one before."""

import pytest
import torch
from training_helpers import Killed, load

from espnet_dus.training.checkpoint_files import atomic_torch_save


class Unpicklable:
    def __reduce__(self):
        raise Killed


def test_an_interrupted_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint.pth"
    with atomic_torch_save():
        torch.save({"epoch": torch.tensor(1)}, path)
        with pytest.raises(Killed):
            torch.save({"epoch": torch.zeros(9), "last": Unpicklable()}, path)
        with pytest.raises(Killed):
            torch.save({"last": Unpicklable()}, str(tmp_path / "new.pth"))
    assert load(path) == {"epoch": torch.tensor(1)}
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names[-1] == "checkpoint.pth" and not [n for n in names if "tmp" in n]


def test_torch_save_is_itself_again_afterwards(tmp_path):
    plain = torch.save
    with pytest.raises(Killed):
        with atomic_torch_save():
            assert torch.save is not plain
            raise Killed
    assert torch.save is plain


def test_an_open_file_is_saved_to_as_ever(tmp_path):
    with atomic_torch_save(), (tmp_path / "x.pth").open("wb") as file:
        torch.save(torch.tensor(3), file)
    assert load(tmp_path / "x.pth") == 3
