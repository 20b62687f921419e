"""Files of checkpoints: whole or absent, with a checksum, and the one before kept."""

import hashlib
import logging
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import torch

from espnet_dus.io import atomic_path, file_sha256, write_text

PREVIOUS = "checkpoint.previous"


@contextmanager
def atomic_torch_save() -> Iterator[None]:
    """Let `torch.save` to a path write a temporary file and rename it.

    ESPnet's Trainer calls `torch.save` deep inside its `run`; a process killed there
    would leave half a checkpoint, with nothing to resume from. Of `checkpoint.pth`, the
    one before it and their checksums are kept too: a disk can fail as well.
    """
    plain_save = torch.save

    def save(obj, f, *args, **kwargs):
        if not isinstance(f, (str, Path)):
            return plain_save(obj, f, *args, **kwargs)
        if Path(f).name == "checkpoint.pth":
            keep_previous(Path(f))
            return save_with_checksum(obj, Path(f))
        with atomic_path(f) as temporary:
            plain_save(obj, temporary, *args, **kwargs)

    torch.save = save
    try:
        yield
    finally:
        torch.save = plain_save


def keep_previous(checkpoint: Path) -> None:
    """Keep a checkpoint that will be replaced, and its checksum, under another name.

    A link is made, so that at no time `checkpoint.pth` is missing.
    """
    for suffix in ("", ".sha256"):
        path = Path(f"{checkpoint}{suffix}")
        if path.exists():
            previous = path.with_name(path.name.replace("checkpoint", PREVIOUS))
            with atomic_path(previous) as link:
                try:
                    link.hardlink_to(path)
                except OSError:  # not every file system has links
                    shutil.copyfile(path, link)


def whole_checkpoint(checkpoint: Path) -> Path:
    """Return a checkpoint, or the one before it if it is damaged.

    Raises:
        RuntimeError: Both are.
    """
    if not differs_from_checksum(checkpoint):
        return checkpoint
    previous = checkpoint.with_name(f"{PREVIOUS}.pth")
    if not previous.exists() or differs_from_checksum(previous):
        raise RuntimeError(
            f"{checkpoint} is damaged: it differs from its checksum, and there is no "
            f"{previous.name} to take instead. Remove it to train from the beginning"
        )
    logging.warning(f"{checkpoint} differs from its checksum: {previous} is taken")
    return previous


def save_with_checksum(content: Any, path: Path) -> None:
    """Save a file, and its checksum beside it; each is complete or absent."""
    checksum = Path(f"{path}.sha256")
    checksum.unlink(missing_ok=True)  # a process killed here leaves a file without it
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            hashing = _HashingWriter(file)
            torch.save(content, hashing)
    write_text(checksum, f"{hashing.sha256.hexdigest()}  {path.name}\n")


class _HashingWriter:
    """A file that computes the checksum of what is written to it."""

    def __init__(self, file):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def differs_from_checksum(path: Path) -> bool:
    """Return whether a file is not what was saved; one without a checksum passes."""
    checksum = Path(f"{path}.sha256")
    if not checksum.is_file():
        return False
    return file_sha256(path) != checksum.read_text(encoding="utf-8").split()[0]
