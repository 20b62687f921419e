"""The best of several short trainings of one arm that differ in their learning rate."""

from pathlib import Path
from typing import Sequence, Union

from espnet_dus.evaluation.results import read_json


def best_trial(exp_dirs: Sequence[Union[str, Path]]) -> Path:
    """Return the training with the lowest validation loss after the last epoch.

    Args:
        exp_dirs: Experiment directories after stage 11, of the same number of epochs.

    Returns:
        The experiment directory of the best.

    Raises:
        ValueError: A directory was not trained or not validated, the numbers of epochs
            differ, or no loss is finite.
    """
    trials = {}
    for exp_dir in map(Path, exp_dirs):
        training = read_json(exp_dir / "training.json") or {}
        losses = training.get("curves", {}).get("valid")
        if not losses:
            raise ValueError(f"{exp_dir}: no validation loss in training.json")
        trials[exp_dir] = losses
    if len({len(losses) for losses in trials.values()}) > 1:
        epochs = ", ".join(f"{path}: {len(losses)}" for path, losses in trials.items())
        raise ValueError(f"trainings of different numbers of epochs: {epochs}")
    finite = {
        p: losses[-1] for p, losses in trials.items() if losses[-1] < float("inf")
    }
    if not finite:
        raise ValueError(
            f"no training has a finite loss: {', '.join(map(str, trials))}"
        )
    return min(finite, key=finite.get)
