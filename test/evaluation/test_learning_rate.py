"""Which of several short trainings had the best learning rate."""

import json

import pytest

from espnet_dus.evaluation.learning_rate import best_learning_rate


def trial(directory, rate, *losses):
    directory.mkdir()
    (directory / "config.yaml").write_text(f"optim_conf: {{lr: {rate}}}\n")
    training = {"curves": {"valid": losses}}
    (directory / "training.json").write_text(json.dumps(training))
    return directory


def test_the_lowest_loss_after_the_last_epoch_decides(tmp_path):
    low = trial(tmp_path / "low", 0.0003, 3.0, 2.5)
    high = trial(tmp_path / "high", 0.003, 2.0, 2.6)
    assert best_learning_rate([low, high]) == 0.0003


def test_a_training_that_diverged_is_not_the_best(tmp_path):
    low = trial(tmp_path / "low", 0.0003, 3.0)
    high = trial(tmp_path / "high", 0.003, float("nan"))
    assert best_learning_rate([high, low]) == 0.0003
    with pytest.raises(ValueError, match="no training has a finite loss: .*high"):
        best_learning_rate([high])


def test_trainings_of_unequal_length_are_refused(tmp_path):
    short = trial(tmp_path / "short", 0.0003, 3.0)
    long = trial(tmp_path / "long", 0.001, 3.0, 2.0)
    with pytest.raises(ValueError, match="short: 1, .*long: 2"):
        best_learning_rate([short, long])


def test_an_untrained_directory_is_named(tmp_path):
    with pytest.raises(ValueError, match="empty: no validation loss"):
        best_learning_rate([tmp_path / "empty"])
