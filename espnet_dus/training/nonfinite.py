"""Updates that are skipped because the loss or the gradient is not finite."""

import logging
import math
from pathlib import Path
from typing import List

import torch
from espnet2.train.reporter import SubReporter


class NonfiniteSteps:
    """Counts the updates of an epoch that were skipped, up to a limit.

    ESPnet's Trainer skips an update whose gradient is not finite, and says no more.

    Args:
        reporter: ESPnet's, of this epoch: it has no `grad_norm` of a skipped update.
        output_dir: Gets `nonfinite_steps.txt`, a line for each such update.
        limit: How many an epoch may have.
    """

    def __init__(self, reporter: SubReporter, output_dir: Path, limit: int):
        self.reporter = reporter
        self.path = output_dir / "nonfinite_steps.txt"
        self.limit = limit
        # there is a time of every update: those of before an interruption count too
        self.count = finite_values(reporter, "train_time")
        self.count -= finite_values(reporter, "grad_norm")

    def check(self, utt_ids: List[str]) -> None:
        """Look at the last update.

        Args:
            utt_ids: Its utterances.

        Raises:
            RuntimeError: More updates than `limit` were skipped.
        """
        norms = self.reporter.stats.get("grad_norm", [])
        if norms and math.isfinite(norms[-1].value):
            return
        self.count += 1
        epoch, batch = self.reporter.get_epoch(), self.reporter.count
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"epoch {epoch} batch {batch}: {' '.join(utt_ids)}\n")
        logging.warning(
            f"update skipped, loss or gradient not finite ({self.count} of at most "
            f"{self.limit} in epoch {epoch}); utterances: {' '.join(utt_ids)}"
        )
        if self.count > self.limit:
            raise RuntimeError(
                f"epoch {epoch}: {self.count} updates had a loss or a gradient that is "
                f"not finite, {self.limit} may (--max_nonfinite_steps). Look at their "
                f"utterances in {self.path}: if they are always the same, at their "
                "audio and transcripts; if not, lower the learning rate or grad_clip, "
                "lengthen the warm-up, or compute in float32 (base_lm_conf dtype)"
            )


def finite_values(reporter: SubReporter, name: str) -> int:
    """Count the finite values that ESPnet's reporter has noted under a name."""
    return sum(math.isfinite(v.value) for v in reporter.stats.get(name, []))


def spoil_nonfinite_loss(module, args, output):
    """Make the gradient of a loss that is not finite NaN, so that its step is skipped.

    ESPnet's Trainer looks at the gradient alone, which may be finite all the same.
    """
    loss, *rest = output
    nan = torch.full_like(loss, math.nan)
    factor = torch.where(loss.detach().isfinite(), torch.ones_like(loss), nan)
    return (loss * factor, *rest)
