"""The learning-rate schedule and the length of the training belong together.

How many updates a training has depends on the data, the epochs and the number of
processes. So a schedule may be stated in shares of them: a fraction in ESPnet's
`warmup_steps` (WarmupLR and its like) or `warmup_steps_list` (PiecewiseLinearWarmupLR)
is a share of all updates.

    scheduler: warmuplr                     scheduler: piecewiselinearwarmuplr
    scheduler_conf:                         scheduler_conf:
        warmup_steps: 0.05                      warmup_steps_list: [0.0, 0.05, 1.0]
                                                warmup_lr_list: [0.0, 1.0e-4, 2.0e-5]
"""

import logging
import math
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Sequence, Union

import torch
from espnet2.schedulers.piecewise_linear_warmup_lr import PiecewiseLinearWarmupLR

Steps = Union[int, float]
_STEPS = "warmup_steps"  # prefix of the attributes of schedulers that hold steps


def updates_per_epoch(iter_factory: Any, accum_grad: int) -> Optional[int]:
    """Return and log the updates in an epoch; None: the factory does not know it."""
    batches = getattr(iter_factory, "num_batches", None)  # of a stream
    if batches is None:
        batches = getattr(iter_factory, "num_iters_per_epoch", None)
    if batches is None and hasattr(iter_factory, "sampler"):
        batches = len(iter_factory.sampler)
    if batches is None:
        return None
    updates = math.ceil(batches / accum_grad)
    hours = getattr(iter_factory, "hours", None)  # of a stream
    size = "" if hours is None else f", {hours / updates:.3g} h of speech each"
    logging.info(f"training: about {updates:,} updates an epoch{size}")
    return updates


def fit_schedule(
    optimizer: torch.optim.Optimizer, scheduler: Any, updates: Optional[int]
) -> None:
    """Turn a schedule's shares into updates, check it and log its highest rate.

    Args:
        optimizer: With the first learning rate.
        scheduler: ESPnet's, new; None: the learning rate is constant.
        updates: Number of updates in the training; None: not known.

    Raises:
        ValueError: The warm-up is longer than the training, a share is given but the
            number of updates is not known, or the rate jumps after the last step of a
            piecewise linear schedule.
    """
    steps = _steps(scheduler)
    if steps and any(_is_share(step) for step in steps):
        if updates is None:
            raise ValueError(
                f"scheduler_conf: {steps} has shares of the training, but its number "
                "of updates is not known with this iterator; give numbers of updates"
            )
        steps = [round(s * updates) if _is_share(s) else s for s in steps]
        if isinstance(scheduler, PiecewiseLinearWarmupLR):
            scheduler.warmup_steps_list = steps
        else:
            scheduler.warmup_steps = max(steps[0], 1)
        for group, rate in zip(optimizer.param_groups, scheduler.get_lr()):
            group["lr"] = rate  # of the first update
    if isinstance(scheduler, PiecewiseLinearWarmupLR):
        _check_last_rate(scheduler)
    if steps is None or updates is None:
        length = "a number not known beforehand" if updates is None else f"{updates:,}"
        logging.info(f"schedule: {length} of updates, {scheduler or 'constant rate'}")
        return
    warmup = steps[0]
    if isinstance(scheduler, PiecewiseLinearWarmupLR):
        rates = scheduler.warmup_lr_list
        warmup = steps[rates.index(max(rates))]
    if warmup > updates:
        raise ValueError(
            f"scheduler_conf: the warm-up of {warmup:,} updates is longer than the "
            f"training, which has {updates:,} (max_epoch times the updates of an epoch)"
            "; give a share, such as warmup_steps: 0.05, or train longer"
        )
    # TristageLR and the piecewise linear schedule say where they end
    last = getattr(scheduler, "max_steps", steps[-1])
    if last > updates:
        logging.warning(
            f"schedule: it ends at update {last:,}, but the training has {updates:,}: "
            "the rates at its end are never reached"
        )
    peak = _rates_at(scheduler, max(round(warmup), 1))
    logging.info(
        f"schedule: {updates:,} updates, warm-up {warmup:,} of them, highest learning "
        f"rate {' and '.join(f'{rate:.2e}' for rate in peak)}"
    )


@contextmanager
def steps_kept(schedulers: Sequence[Any]) -> Iterator[None]:
    """Keep the steps of the schedules while a checkpoint is loaded.

    The checkpoint has those of the run that saved it. A run with a larger `max_epoch`
    has others if they are given in shares.
    """
    schedulers = [scheduler for scheduler in schedulers if scheduler is not None]
    steps = [
        {name: value for name, value in vars(s).items() if name.startswith(_STEPS)}
        for s in schedulers
    ]
    yield
    for scheduler, kept in zip(schedulers, steps):
        vars(scheduler).update(kept)


def _steps(scheduler: Any) -> Optional[List[Steps]]:
    if isinstance(scheduler, PiecewiseLinearWarmupLR):
        return list(scheduler.warmup_steps_list)
    steps = getattr(scheduler, "warmup_steps", None)
    return None if steps is None else [steps]


def _is_share(steps: Steps) -> bool:
    return isinstance(steps, float) and 0 <= steps <= 1


def _rates_at(scheduler: Any, step: int) -> Sequence[float]:
    """Return the distinct learning rates of an update, the highest first."""
    before = scheduler.last_epoch
    try:
        scheduler.last_epoch = step - 1
        return sorted(set(scheduler.get_lr()), reverse=True)
    finally:
        scheduler.last_epoch = before


def _check_last_rate(scheduler: PiecewiseLinearWarmupLR) -> None:
    last = scheduler.warmup_lr_list[-1]
    for rate in scheduler.base_lrs:
        if not math.isclose(rate, last, rel_tol=1e-3):
            raise ValueError(
                f"scheduler_conf: after its last step the rate is optim_conf lr, "
                f"{rate}, and falls with the inverse root, so it would jump from "
                f"{last}; set optim_conf lr={last} (and no lr_scale, which the rates "
                "of this scheduler do not follow)"
            )
