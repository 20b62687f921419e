"""Updates that are skipped because the loss or the gradient is non-finite."""

import logging
import math
from pathlib import Path
from typing import List

import torch
from espnet2.train.reporter import SubReporter


class NonfiniteSteps:
    """Counts the updates of an epoch that were skipped, up to a limit.

    ESPnet's Trainer skips an update with a non-finite gradient without counting it.

    Args:
        reporter: ESPnet's, of this epoch: it has no `grad_norm` of a skipped update.
        output_dir: Gets `nonfinite_steps.txt`, a line for each such update.
        limit: Maximum number in an epoch.
        scaled_batches: Batches of an update if a GradScaler scales the loss (ESPnet's
            use_amp), else 0. It makes gradients overflow on purpose, to find the
            largest scale: with finite losses such an update is not counted.
    """

    def __init__(
        self,
        reporter: SubReporter,
        output_dir: Path,
        limit: int,
        scaled_batches: int = 0,
    ):
        self.reporter = reporter
        self.path = output_dir / "nonfinite_steps.txt"
        self.limit = limit
        self.scaled_batches = scaled_batches
        # Every update has a train_time: updates before an interruption count too.
        all_of_them, finite = ("train_time", "grad_norm")
        if scaled_batches:
            all_of_them, finite = ("forward_time", "loss")
        self.count = finite_values(reporter, all_of_them)
        self.count -= finite_values(reporter, finite)

    def check(self, utt_ids: List[str]) -> None:
        """Check the last update.

        Args:
            utt_ids: Its utterances.

        Raises:
            RuntimeError: More updates than `limit` were skipped.
        """
        norms = self.reporter.stats.get("grad_norm", [])
        if norms and math.isfinite(norms[-1].value):
            return
        if self.scaled_batches:
            losses = self.reporter.stats["loss"][-self.scaled_batches :]
            if all(math.isfinite(loss.value) for loss in losses):
                logging.info("update skipped: the scaled gradient overflowed")
                return
        self.count += 1
        epoch, batch = self.reporter.get_epoch(), self.reporter.count
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"epoch {epoch} batch {batch}: {' '.join(utt_ids)}\n")
        logging.warning(
            f"update skipped: non-finite loss or gradient ({self.count} of at most "
            f"{self.limit} in epoch {epoch}); utterances: {' '.join(utt_ids)}"
        )
        if self.count > self.limit:
            raise RuntimeError(
                f"epoch {epoch}: {self.count} updates had a non-finite loss or "
                f"gradient; the limit is {self.limit} (--max_nonfinite_steps). Look at "
                f"their utterances in {self.path}: if they are always the same, at "
                "their audio and transcripts; if not, lower the learning rate or "
                "grad_clip, lengthen the warm-up, or compute in float32 (base_lm_conf "
                "dtype)"
            )


def finite_values(reporter: SubReporter, name: str) -> int:
    """Count the finite values that ESPnet's reporter has noted under a name."""
    return sum(math.isfinite(v.value) for v in reporter.stats.get(name, []))


def spoil_nonfinite_loss(module, args, output):
    """Make the gradient of a non-finite loss NaN, so that its step is skipped.

    ESPnet's Trainer checks the gradient alone, which may still be finite.
    """
    loss, *rest = output
    nan = torch.full_like(loss, math.nan)
    factor = torch.where(loss.detach().isfinite(), torch.ones_like(loss), nan)
    return (loss * factor, *rest)
