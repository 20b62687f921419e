"""ESPnet's `use_amp`, with the GradScaler of a CPU in the place of a GPU's."""

import espnet2.train.trainer
import pytest
import torch
from training_helpers import load

from espnet_dus.training import trainer


@pytest.fixture
def autocasts(monkeypatch):
    """The arguments of each autocast for GPUs."""
    seen = []
    entered = torch.autocast.__init__

    def record(self, device_type, **kwargs):
        if device_type == "cuda":
            seen.append(kwargs)
        entered(self, device_type, **kwargs)

    monkeypatch.setattr(torch.autocast, "__init__", record)
    return seen


def test_a_scaled_loss_trains_with_fused_adamw_and_saves_its_scale(
    train, tmp_path, monkeypatch, autocasts
):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(espnet2.train.trainer, "GradScaler", lambda: scaler("cpu"))
    for module in (espnet2.train.trainer, trainer):  # as on a GPU that computes in it
        monkeypatch.setattr(module, "autocast_args", {"dtype": torch.bfloat16})
    options = dict(optim_conf={"lr": 1e-3, "fused": True}, use_amp=True)
    saved = load(train(tmp_path / "exp", **options) / "checkpoint.pth")
    assert saved["optimizers"][0]["param_groups"][0]["fused"]
    # bfloat16 has float32's range and needs no scale; ESPnet scales all the same
    assert saved["scaler"]["scale"] == 2.0**16
    epochs = saved["reporter"]["stats"]
    losses = [epochs[epoch]["train"]["loss"] for epoch in sorted(epochs)]
    assert losses[-1] < losses[0]
    # validation computes as training does
    assert len(autocasts) == 4 * (2 + 2)
    assert all(a == {"enabled": True, "dtype": torch.bfloat16} for a in autocasts)
