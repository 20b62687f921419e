"""Criteria name what every epoch reports, or are refused before the training."""

from types import SimpleNamespace

import pytest
from espnet2.schedulers.abs_scheduler import AbsValEpochStepScheduler

from espnet_dus.training.criteria import check_criteria


@pytest.fixture
def model():
    """A model whose statistics are known."""
    names = {True: ["loss", "acc"], False: ["loss", "acc", "wer_ctc"]}
    return SimpleNamespace(statistics=lambda training: names[training])


def options(best=(("valid", "acc", "max"),), patience=None, **criteria):
    return SimpleNamespace(
        best_model_criterion=best,
        patience=patience,
        early_stopping_criterion=criteria.get("stop", ("valid", "nothing", "min")),
        val_scheduler_criterion=criteria.get("rate", ("valid", "nothing")),
    )


def test_criteria_that_match_pass(model):
    best = [("valid", "wer_ctc", "min"), ["train", "loss", "min"]]
    check_criteria(
        options(best), [None], model
    )  # those without effect may say anything
    check_criteria(options(patience=3, stop=("train", "acc", "max")), [], model)


@pytest.mark.parametrize(
    "best, message",
    [
        ([("valid", "acc", "max"), ("valid", "los", "min")], "valid los min matches"),
        ([("train", "wer_ctc", "min")], "train wer_ctc min matches nothing"),
        ([("test", "acc", "max")], "test acc max matches nothing"),
        ([("valid", "acc", "most")], "valid acc most: expected min or max"),
        ([("valid", "acc")], "valid acc: expected min or max"),
        ([("valid",)], "valid matches nothing"),
        ([("valid", "acc", "max", "x")], "expected min or max"),
    ],
)
def test_one_name_that_matches_nothing_is_an_error(model, best, message):
    with pytest.raises(ValueError, match=f"best_model_criterion: .*{message}") as info:
        check_criteria(options(best), [], model)
    if "matches" in message:
        assert "train: loss, acc; valid: loss, acc, wer_ctc" in str(info.value)


def test_the_other_criteria_are_checked_where_they_have_an_effect(model):
    with pytest.raises(ValueError, match="early_stopping_criterion: valid nothing"):
        check_criteria(options(patience=2), [], model)

    class Plateau(AbsValEpochStepScheduler):
        __init__ = step = state_dict = load_state_dict = lambda self, *_: None

    with pytest.raises(ValueError, match="val_scheduler_criterion: valid nothing"):
        check_criteria(options(), [Plateau()], model)
    check_criteria(options(rate=("valid", "loss")), [Plateau()], model)


@pytest.mark.parametrize(
    "scope, conf",
    [
        ("speech", {}),
        ("speech", {"ctc_weight": 0.0}),
        ("speech", {"ctc_weight": 1.0}),
        ("speech", {"ctc_warmup_epochs": 1}),
        ("speech", {"ctc_weight": 0.0, "ctc_warmup_epochs": 1}),
        ("all", {"text_retention_weight": 1.0}),
    ],
)
def test_the_names_are_those_that_every_epoch_reports(
    tiny_model, tiny_batch, adaptation_conf, scope, conf
):
    model = tiny_model(
        adaptation_conf=adaptation_conf("transformer", scope),
        model_conf=dict(prompt="T:", **conf),
    )
    batch = tiny_batch(0.9, 0.7)
    for training in (True, False):
        model.train(training)
        found = []
        for epoch in (1, 2):
            model.set_epoch(epoch)
            found.append(
                {*model(**batch)[1]} if training else {*model.loss_sums(**batch)}
            )
        names = (found[0] & found[1]) | {"loss"}
        if model.ctc_weight == 1:
            names -= {"acc"}  # 0 in each epoch: it chooses none
        assert {*model.statistics(training)} == names


def test_a_training_is_refused_at_once(train, tmp_path):
    with pytest.raises(ValueError, match="best_model_criterion: valid accuracy max"):
        train(tmp_path / "exp", best_model_criterion=[["valid", "accuracy", "max"]])
    assert not [*(tmp_path / "exp").glob("*.pth")]
