"""What the tests of the training share."""

import torch


class Killed(BaseException):
    """Stands for a process that has ended."""


def load(path):
    return torch.load(path, weights_only=False)


def assert_same(ours, theirs, where=""):
    """Compare nested containers bit for bit, times left out."""
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            if "time" not in str(key) and "cached" not in str(key):
                assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert ours == theirs, where


def assert_same_training(ours, theirs):
    for name in ("model", "optimizers", "schedulers", "reporter"):
        assert_same(
            load(ours / "checkpoint.pth")[name],
            load(theirs / "checkpoint.pth")[name],
            name,
        )
    for name in ("4epoch.pth", "valid.loss.ave.pth", "latest.pth"):
        assert_same(load(ours / name), load(theirs / name), name)
    # the process may have died before it removed an epoch that is not needed
    assert {p.name for p in ours.glob("*epoch.pth")} >= {
        p.name for p in theirs.glob("*epoch.pth")
    }
