"""Which of several short trainings is the best."""

import json

import pytest

from espnet_dus.evaluation.trials import best_trial


def trial(directory, *losses):
    directory.mkdir()
    training = {"curves": {"valid": losses}}
    (directory / "training.json").write_text(json.dumps(training))
    return directory


def test_the_lowest_loss_after_the_last_epoch_decides(tmp_path):
    low = trial(tmp_path / "low", 3.0, 2.5)
    high = trial(tmp_path / "high", 2.0, 2.6)
    assert best_trial([low, high]) == low


def test_a_training_that_diverged_is_not_the_best(tmp_path):
    low = trial(tmp_path / "low", 3.0)
    high = trial(tmp_path / "high", float("nan"))
    assert best_trial([high, low]) == low
    with pytest.raises(ValueError, match="no training has a finite loss: .*high"):
        best_trial([high])


def test_trainings_of_unequal_length_are_refused(tmp_path):
    short = trial(tmp_path / "short", 3.0)
    long = trial(tmp_path / "long", 3.0, 2.0)
    with pytest.raises(ValueError, match="short: 1, .*long: 2"):
        best_trial([short, long])


def test_an_untrained_directory_is_named(tmp_path):
    with pytest.raises(ValueError, match="empty: no validation loss"):
        best_trial([tmp_path / "empty"])
