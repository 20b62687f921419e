"""Schedules in shares of the training: right rates, and what cannot work is refused."""

import logging

import pytest
import torch
from espnet2.schedulers.piecewise_linear_warmup_lr import PiecewiseLinearWarmupLR
from espnet2.schedulers.tristage_lr import TristageLR
from espnet2.schedulers.warmup_lr import WarmupLR

from espnet_dus.training.schedule import fit_schedule, updates_per_epoch


def make(scheduler, lr, **conf):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return optimizer, scheduler(optimizer, **conf)


def rates(optimizer, scheduler, updates):
    found = []
    for _ in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_a_share_of_the_updates_is_the_warm_up(caplog):
    with caplog.at_level(logging.INFO):
        one = make(WarmupLR, 2e-4, warmup_steps=0.05)
        fit_schedule(*one, updates=1000)
    other = make(WarmupLR, 2e-4, warmup_steps=50)
    found = rates(*one, 1000)
    assert found == pytest.approx(rates(*other, 1000))
    assert max(found) == pytest.approx(2e-4) and found.index(max(found)) == 49
    assert "1,000 updates, warm-up 50 of them, highest learning rate 2.00e-04" in (
        caplog.text
    )


def test_the_papers_schedule_can_be_stated():
    # 25k of 500k updates up to 1e-4, then linear decay to 2e-5; here of 1,000
    schedule = dict(
        warmup_steps_list=[0.0, 0.05, 1.0], warmup_lr_list=[0.0, 1e-4, 2e-5]
    )
    one = make(PiecewiseLinearWarmupLR, 2e-5, **schedule)
    fit_schedule(*one, updates=1000)
    found = rates(*one, 1100)
    assert found[0] == pytest.approx(1e-4 / 50)
    assert found[49] == pytest.approx(1e-4) and max(found) == found[49]
    assert found[524] == pytest.approx(6e-5)  # halfway down
    assert found[999] == pytest.approx(2e-5)
    assert found[1099] == pytest.approx(2e-5 * (1000 / 1100) ** 0.5)


@pytest.mark.parametrize(
    "scheduler, lr, conf, updates, message",
    [
        (WarmupLR, 1e-3, dict(warmup_steps=10000), 1365, "10,000 .* has 1,365"),
        (WarmupLR, 1e-3, dict(warmup_steps=0.1), None, "updates is not known"),
        (
            PiecewiseLinearWarmupLR,
            1e-4,
            dict(warmup_steps_list=[0, 9, 99], warmup_lr_list=[0.0, 1e-4, 2e-5]),
            99,
            "would jump from 2e-05; set optim_conf lr=2e-05",
        ),
        (
            PiecewiseLinearWarmupLR,
            2e-5,
            dict(warmup_steps_list=[0, 100, 200], warmup_lr_list=[0.0, 1e-4, 2e-5]),
            99,
            "warm-up of 100 updates is longer than the training",
        ),
    ],
)
def test_a_schedule_that_cannot_work_is_an_error(scheduler, lr, conf, updates, message):
    with pytest.raises(ValueError, match=message):
        fit_schedule(*make(scheduler, lr, **conf), updates)


@pytest.mark.parametrize(
    "scheduler, conf",
    [
        (
            TristageLR,
            dict(max_steps=200, warmup_ratio=0.1, hold_ratio=0.4, decay_ratio=0.5),
        ),
        (
            PiecewiseLinearWarmupLR,
            dict(warmup_steps_list=[0, 10, 200], warmup_lr_list=[0.0, 1e-4, 2e-5]),
        ),
    ],
)
def test_a_schedule_longer_than_the_training_is_warned_of(scheduler, conf, caplog):
    for updates in (200, 150):
        fit_schedule(*make(scheduler, 2e-5, **conf), updates)
    warnings = [r for r in caplog.records if r.levelname == "WARNING"]
    (message,) = (record.getMessage() for record in warnings)
    assert message.startswith(
        "schedule: it ends at update 200, but the training has 150"
    )


def test_a_training_logs_its_updates_and_refuses_a_longer_warm_up(
    train, tmp_path, caplog
):
    with pytest.raises(ValueError, match="warm-up of 9 updates .* which has 8"):
        train(tmp_path / "long", scheduler_conf={"warmup_steps": 9})
    with caplog.at_level(logging.INFO):
        train(
            tmp_path / "half",
            max_epoch=2,
            accum_grad=2,
            scheduler_conf={"warmup_steps": 0.5},
        )
    assert "about 1 updates an epoch" in caplog.text
    assert "2 updates, warm-up 1 of them, highest learning rate 1.00e-03" in caplog.text


class Factory:
    def __init__(self, **values):
        self.__dict__.update(values)


def test_the_updates_of_an_epoch_count_its_last_one():
    assert updates_per_epoch(Factory(num_batches=9), 4) == 3
    assert updates_per_epoch(Factory(sampler=[1] * 8, num_iters_per_epoch=None), 4) == 2
    assert updates_per_epoch(Factory(sampler=[1] * 8, num_iters_per_epoch=5), 1) == 5
    assert updates_per_epoch(Factory(), 1) is None
