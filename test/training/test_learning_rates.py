"""Learning rates of parts."""

import pytest
import torch
from espnet2.schedulers.tristage_lr import TristageLR

from espnet_dus.task import DUSTask
from espnet_dus.training.learning_rates import scale_learning_rates

NAMES = ("lm.layer.w", "lm.head", "lmx.w", "prompt")


@pytest.fixture
def parameters():
    return {name: torch.nn.Parameter(torch.ones(2)) for name in NAMES}


def rates(optimizer, parameters):
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {
        names[id(parameter)]: group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_the_longest_beginning_of_a_name_counts(parameters):
    optimizer = torch.optim.SGD(parameters.values(), lr=1.0, momentum=0.9)
    scales = {"lm.layer": 0.5, "lm": 0.1, "prompt": 10.0}
    scale_learning_rates(optimizer, parameters, scales)
    assert rates(optimizer, parameters) == dict(zip(NAMES, (0.5, 0.1, 1.0, 10.0)))
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    for parameter in parameters.values():
        parameter.grad = torch.ones(2)
    optimizer.step()
    moved = {name: round(1 - p[0].item(), 4) for name, p in parameters.items()}
    assert moved == rates(optimizer, parameters)


def test_a_scheduler_keeps_the_proportions(parameters):
    optimizer = torch.optim.SGD(parameters.values(), lr=1.0)
    scale_learning_rates(optimizer, parameters, {"prompt": 10.0})
    scheduler = TristageLR(optimizer, max_steps=20)
    seen = set()
    for _ in range(20):
        optimizer.step()
        scheduler.step()
        now = rates(optimizer, parameters)
        assert now["prompt"] == pytest.approx(10 * now["lm.head"])
        seen.add(round(now["prompt"], 6))
    assert len(seen) > 5


@pytest.mark.parametrize(
    "scales, message",
    [
        ({"l": 0.1}, "lr_scale: 'l' matches no trained parameter"),
        ({"lm": 0}, "lr_scale: lm=0 is not a number above 0"),
        ({"lm": "1e-1"}, "lr_scale: lm='1e-1' is not a number above 0"),
    ],
)
def test_a_scale_that_cannot_be_meant_is_an_error(parameters, scales, message):
    optimizer = torch.optim.SGD(parameters.values(), lr=1.0)
    with pytest.raises(ValueError, match=message):
        scale_learning_rates(optimizer, parameters, scales)


def test_the_task_scales_what_the_configuration_names(tiny_options, tiny_model):
    options = dict(
        model_conf=dict(prompt="Transcript:", prompt_tuning=True),
        lr_scale={"prompt_embeddings": 10.0},
        optim="adamw",
        optim_conf={"lr": 1.0e-3},
    )
    model = tiny_model(**options)
    (optimizer,) = DUSTask.build_optimizers(tiny_options(**options), model)
    found = rates(optimizer, dict(model.named_parameters()))
    assert found.pop("prompt_embeddings") == pytest.approx(1.0e-2)
    assert set(found.values()) == {1.0e-3}
