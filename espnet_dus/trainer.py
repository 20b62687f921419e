"""ESPnet's Trainer with checkpoints that are whole, warm-up epochs and bad data."""

import json
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import torch
from espnet2.torch_utils.safe_torch_load import safe_torch_load
from espnet2.train.trainer import Trainer

from espnet_dus.checkpoint import parameter_counts
from espnet_dus.data.dataset import NonEmptyBatches
from espnet_dus.io import atomic_path, write_text


class DUSTrainer(Trainer):
    """ESPnet's Trainer; see the module's first line for what is added."""

    @classmethod
    def run(cls, model, trainer_options, **kwargs):
        """Train; every file written with `torch.save` is whole or absent.

        `params.json` in the output directory says how much is trained, for RESULTS.md.
        """
        content = {**parameter_counts(model), "base_lm": vars(model.identity)}
        path = Path(trainer_options.output_dir) / "params.json"
        write_text(path, json.dumps(content, indent=2) + "\n")
        with atomic_torch_save():
            super().run(model=model, trainer_options=trainer_options, **kwargs)

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
