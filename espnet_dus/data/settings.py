"""What the batches of an epoch depend on, to compare when the epoch is resumed."""

import argparse
import os
from typing import Dict

import torch

from espnet_dus.io import file_sha256

# Options that change the data or their order, where they are read from files.
OPTIONS = (
    *("seed", "iterator_type", "num_iters_per_epoch", "accum_grad", "drop_last_iter"),
    *("batch_type", "batch_size", "batch_bins", "max_batch_size", "min_batch_size"),
    *("fold_length", "sort_in_batch", "sort_batch", "shuffle_within_batch"),
    *("multiple_iterator", "chunk_length", "chunk_shift_ratio"),
    *("train_data_path_and_name_and_type", "cleaner", "specaug", "specaug_conf"),
)


def data_settings(args: argparse.Namespace) -> Dict[str, str]:
    """Return the options that change the data or their order, as text by name.

    The tables of the data, and `train_shape_file`, which lists the utterances, count by
    their content.
    """
    settings = {name: repr(getattr(args, name, None)) for name in OPTIONS}
    tables = [path for path, _, _ in args.train_data_path_and_name_and_type]
    for path in filter(os.path.isfile, [*args.train_shape_file, *tables]):
        settings[f"content of {path}"] = file_sha256(path)
    processes = 1
    if torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
    settings["number of processes"] = repr(processes)
    return settings


def check_settings(before: Dict[str, str], now: Dict[str, str]) -> None:
    """Check that an interrupted epoch had the present settings.

    Raises:
        ValueError: It had others; the message names those that differ.
    """
    changed = [
        f"{name} (was {before.get(name, 'not set')}, is {now.get(name, 'not set')})"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            "the interrupted epoch cannot be resumed, since its data or their order "
            f"would differ: {'; '.join(changed)}. Use the same again, or remove "
            "step_checkpoints from the experiment directory to restart the epoch"
        )
