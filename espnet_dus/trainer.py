"""ESPnet's Trainer with checkpoints that are whole, warm-up epochs and bad data."""

import json
import logging
import resource
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

import torch
from espnet2.torch_utils.safe_torch_load import safe_torch_load
from espnet2.train.reporter import Reporter
from espnet2.train.trainer import Trainer

from espnet_dus.checkpoint import parameter_counts
from espnet_dus.data.dataset import NonEmptyBatches
from espnet_dus.io import atomic_path, write_text


class DUSTrainer(Trainer):
    """ESPnet's Trainer; see the module's first line for what is added."""

    @classmethod
    def run(cls, model, trainer_options, **kwargs):
        """Train; every file written with `torch.save` is whole or absent.

        In the output directory, `params.json` says how much is trained, and
        `training.json` what the training took: see `write_training_cost`.
        """
        output_dir = Path(trainer_options.output_dir)
        content = {**parameter_counts(model), "base_lm": vars(model.identity)}
        write_text(output_dir / "params.json", json.dumps(content, indent=2) + "\n")
        before = _time_of_change(output_dir / "checkpoint.pth")
        with atomic_torch_save():
            super().run(model=model, trainer_options=trainer_options, **kwargs)
        distributed = kwargs["distributed_option"]
        if not distributed.distributed or distributed.dist_rank == 0:
            trained = _time_of_change(output_dir / "checkpoint.pth") != before
            write_training_cost(output_dir, trained)

    @staticmethod
    def resume(checkpoint, model, **kwargs):
        """Continue from a checkpoint, mending an interruption just after it.

        The Trainer writes `checkpoint.pth`, then `Nepoch.pth`, then the link
        `latest.pth`. Killed in between, it would miss the second when it averages the
        best epochs, and the third would stay behind if this was the last epoch.
        """
        Trainer.resume(checkpoint=checkpoint, model=model, **kwargs)
        epoch = kwargs["reporter"].get_epoch()
        epoch_file = Path(checkpoint).parent / f"{epoch}epoch.pth"
        if not epoch_file.exists():
            logging.warning(f"{epoch_file} is missing: written anew from {checkpoint}")
            with atomic_torch_save():
                torch.save(
                    safe_torch_load(checkpoint, map_location="cpu")["model"], epoch_file
                )
        with atomic_path(epoch_file.with_name("latest.pth")) as link:
            link.symlink_to(epoch_file.name)

    @classmethod
    def train_one_epoch(cls, model, iterator, reporter, **kwargs):
        """Train an epoch; the model is told which, for its CTC warm-up."""
        getattr(model, "module", model).set_epoch(reporter.get_epoch())
        return super().train_one_epoch(
            model=model, iterator=NonEmptyBatches(iterator), reporter=reporter, **kwargs
        )

    @classmethod
    def validate_one_epoch(cls, model, iterator, reporter, **kwargs):
        """Validate as the epoch was trained."""
        getattr(model, "module", model).set_epoch(reporter.get_epoch())
        super().validate_one_epoch(
            model=model, iterator=NonEmptyBatches(iterator), reporter=reporter, **kwargs
        )


def write_training_cost(output_dir: Path, trained: bool) -> None:
    """Write `training.json`: what the training took, its resumptions together.

    It holds `epochs`; `wall_seconds`, of their training and validation, from the
    checkpoint, so that no part of an interrupted training is missing; and
    `peak_memory_bytes` with `peak_memory_of`, the `GPU` or the `process`.

    Args:
        output_dir: The experiment directory.
        trained: Whether this process has trained; if not, its memory does not count.
    """
    checkpoint, path = output_dir / "checkpoint.pth", output_dir / "training.json"
    if not checkpoint.is_file():
        return
    # ru_maxrss is in kibibytes on Linux
    of, peak = "process", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if torch.cuda.is_initialized():
        of, peak = "GPU", torch.cuda.max_memory_allocated()
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    memory = {k: v for k, v in known.items() if k.startswith("peak_memory")}
    if trained and peak > memory.get("peak_memory_bytes", 0):
        memory = {"peak_memory_bytes": peak, "peak_memory_of": of}
    reporter = Reporter()
    saved = safe_torch_load(checkpoint, map_location="cpu", mmap=True)
    reporter.load_state_dict(saved["reporter"])
    seconds = sum(
        phase["time"].total_seconds()
        for phases in reporter.stats.values()
        for phase in phases.values()
        if "time" in phase
    )
    content = {
        "epochs": len(reporter.stats),
        "wall_seconds": round(seconds, 1),
        **memory,
    }
    write_text(path, json.dumps(content, indent=2) + "\n")


def _time_of_change(path: Path) -> Optional[int]:
    return path.stat().st_mtime_ns if path.exists() else None


@contextmanager
def atomic_torch_save() -> Iterator[None]:
    """Let `torch.save` to a path write a temporary file and rename it.

    ESPnet's Trainer calls `torch.save` deep inside its `run`; a process killed there
    would leave half a checkpoint, with nothing to resume from.
    """
    plain_save = torch.save

    def save(obj, f, *args, **kwargs):
        if not isinstance(f, (str, Path)):
            return plain_save(obj, f, *args, **kwargs)
        with atomic_path(f) as temporary:
            plain_save(obj, temporary, *args, **kwargs)

    torch.save = save
    try:
        yield
    finally:
        torch.save = plain_save
