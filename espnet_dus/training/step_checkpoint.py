"""States inside an epoch on disk: complete, verified, only the newest kept.

    step_checkpoints/0003_00012000/     epoch 3, after 12,000 of its batches
        shared.pth                      what is the same in all processes
        rank0of2.pth, rank1of2.pth      what belongs to one process
        *.pth.sha256                    as `sha256sum` writes it; a file without is
                                        incomplete

They belong to the current epoch: ESPnet's `checkpoint.pth` is that of the previous one.
"""

import logging
import shutil
import time
from pathlib import Path
from typing import Any, List, Optional, Tuple

import torch
from espnet2.torch_utils.safe_torch_load import safe_torch_load

from espnet_dus.training.checkpoint_files import (
    differs_from_checksum,
    save_with_checksum,
)
from espnet_dus.training.distributed import rank, world_size


class StepCheckpoints:
    """The newest states of the current epoch.

    Args:
        directory: Where they are.
        keep: Number of them that are kept.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory = Path(directory)
        self.keep = keep

    def save(self, epoch: int, batches: int, shared: Any, own: Any) -> Path:
        """Save a state; all processes call this together.

        Args:
            epoch: The current epoch.
            batches: Number of its batches that are done.
            shared: What is the same in all processes.
            own: What belongs to this process.

        Returns:
            The state's directory.
        """
        start = time.perf_counter()
        place = self.directory / f"{epoch:04d}_{batches:08d}"
        if rank() == 0:
            save_with_checksum(shared, place / "shared.pth")
        save_with_checksum(own, place / _own_file())
        if world_size() > 1:
            torch.distributed.barrier()
        if rank() == 0:
            for old in self._places()[: -self.keep]:
                shutil.rmtree(old)
        logging.info(f"saved {place} in {time.perf_counter() - start:.1f} s")
        return place

    def load(self, epoch: int) -> Optional[Tuple[Any, Any]]:
        """Load the newest complete state of an epoch; all processes call this together.

        States of other epochs are removed, and so are incomplete ones, which a warning
        names.

        Returns:
            What is shared and what belongs to this process, or None without a state.

        Raises:
            ValueError: It was saved by another number of processes.
        """
        chosen = [self._newest(epoch) if rank() == 0 else None]
        if world_size() > 1:
            torch.distributed.broadcast_object_list(chosen)
        if chosen[0] is None:
            return None
        place = Path(chosen[0])
        own = place / _own_file()
        if not own.is_file():
            found = ", ".join(path.name for path in sorted(place.glob("rank0of*.pth")))
            raise ValueError(
                f"{place} was saved by another number of processes ({found}; now "
                f"{world_size()}): use the same number, or remove {self.directory} "
                "to resume from the last complete epoch"
            )
        logging.info(f"resuming inside epoch {epoch}, from {place}")
        return tuple(
            safe_torch_load(path, map_location="cpu", mmap=True)  # shared by processes
            for path in (place / "shared.pth", own)
        )

    def clear(self) -> None:
        """Remove all states."""
        if rank() == 0 and self.directory.exists():
            shutil.rmtree(self.directory)

    def _places(self) -> List[Path]:
        return sorted(self.directory.glob("[0-9]*_[0-9]*"))

    def _newest(self, epoch: int) -> Optional[str]:
        newest = None
        for place in reversed(self._places()):
            if int(place.name.partition("_")[0]) != epoch:
                shutil.rmtree(place)
            elif newest is None:
                if problem := _problem(place):
                    logging.warning(
                        f"{place} is incomplete ({problem}): resuming from the state "
                        "before it, or from the beginning of the epoch"
                    )
                    shutil.rmtree(place)
                else:
                    newest = str(place)
        return newest


def _own_file() -> str:
    return f"rank{rank()}of{world_size()}.pth"


def _problem(place: Path) -> Optional[str]:
    """Return what is wrong with a state's files, or None."""
    sizes = {int(p.stem.partition("of")[2]) for p in place.glob("rank*of*.pth")}
    if len(sizes) != 1:
        return "no process has finished saving"
    (size,) = sizes
    for name in ["shared.pth", *(f"rank{n}of{size}.pth" for n in range(size))]:
        if not (place / name).is_file() or not (place / f"{name}.sha256").is_file():
            return f"{name} or its checksum is missing"
        if differs_from_checksum(place / name):
            return f"{name} differs from its checksum"
    return None
