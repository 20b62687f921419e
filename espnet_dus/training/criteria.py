"""What chooses checkpoints, ends a training or sets the learning rate, by name."""

from typing import Any, Sequence

from espnet2.schedulers.abs_scheduler import AbsValEpochStepScheduler


def check_criteria(options: Any, schedulers: Sequence[Any], model: Any) -> None:
    """Check that every criterion names a statistic that each epoch has.

    ESPnet passes over a name in `best_model_criterion` that matches nothing, and keeps
    no checkpoint for it.

    Args:
        options: ESPnet's trainer options.
        schedulers: ESPnet's.
        model: An `ESPnetDUSModel`.

    Raises:
        ValueError: A criterion does not, or its mode is neither min nor max.
    """
    known = {
        "train": model.statistics(training=True),
        "valid": model.statistics(training=False),
    }
    named = [("best_model_criterion", c) for c in options.best_model_criterion]
    if options.patience is not None:
        named.append(("early_stopping_criterion", options.early_stopping_criterion))
    if any(isinstance(scheduler, AbsValEpochStepScheduler) for scheduler in schedulers):
        named.append(("val_scheduler_criterion", [*options.val_scheduler_criterion]))
    for option, criterion in named:
        phase, name, *mode = [*map(str, criterion), "", ""][: max(len(criterion), 2)]
        text = f"{option}: {' '.join(map(str, criterion))}"
        if name not in known.get(phase, ()):
            names = "; ".join(f"{p}: {', '.join(known[p])}" for p in known)
            raise ValueError(
                f"{text} matches nothing that every epoch reports; expected one of "
                f"{names}"
            )
        if option != "val_scheduler_criterion" and mode not in (["min"], ["max"]):
            raise ValueError(f"{text}: expected min or max as its third word")
