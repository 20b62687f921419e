"""Whole files, YAML, Kaldi's tables, digests, names of files and options, progress."""

import hashlib
import logging
import os
import secrets
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, Optional, Tuple, Union
from urllib.parse import quote

from filelock import FileLock, Timeout
from tqdm import tqdm

MAX_NAME_BYTES = 255  # of a file name, in every common file system
UNSAFE_CHARACTERS = frozenset('%/\\:*?"<>|')
SECONDS_BETWEEN_REPORTS = 30


@contextmanager
def atomic_path(path: Union[str, Path]) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` if the block succeeds.

    The temporary file lies in the same directory, so that the rename is atomic: a
    reader, or a second run after an interruption, sees the whole file or none. Its
    name carries the host and a random part, so that writers on several hosts, or in
    containers that count their processes from 1, never share it.

    Args:
        path: The finished file. Its directory is created.

    Yields:
        The path to write to, with the same suffix as `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{socket.gethostname()[:64]}.{secrets.token_hex(8)}"
    temporary = path.with_name(f".{writer}.tmp{path.suffix[-16:]}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(directory: Union[str, Path]) -> Iterator[None]:
    """Wait for another process that writes to a directory, then keep others out.

    Args:
        directory: It is created.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logging.warning(f"another process writes to {directory}: waiting for its end")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_text(path: Union[str, Path], text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def drawing(path: Union[str, Path], width: float, height: float) -> Iterator[Any]:
    """Yield the axes of a new picture, which is written if the block succeeds.

    Args:
        path: The PNG.
        width: In inches.
        height: In inches.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(figsize=(width, height))
    yield axes
    with atomic_path(path) as temporary:
        picture.savefig(temporary, dpi=150, bbox_inches="tight")
    plt.close(picture)


def read_yaml(path: Union[str, Path]) -> Dict[str, Any]:
    """Read a YAML file of keys and values.

    Raises:
        ValueError: It is not YAML, or holds something else; the file and, where it is
            known, the line are named.
    """
    import yaml  # here, since the command line imports this file for its help

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        problem = getattr(error, "problem", None) or error
        raise ValueError(f"{where}: not YAML: {problem}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys with values, got {content!r:.80}")
    return content


def file_sha256(path: Union[str, Path]) -> str:
    """Return the sha256 of a file's content as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Iterable[Tuple[str, Any]]) -> str:
    """Return the sha256 over the names, types, shapes and values of torch tensors.

    Args:
        tensors: Names and tensors; their order counts.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()


def check_names(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Check the names of options.

    Args:
        where: What takes the options, for the message.
        given: Names to check.
        known: Allowed names.

    Raises:
        ValueError: A name is unknown.
    """
    if unknown := sorted(set(map(str, given)) - set(known)):
        raise ValueError(
            f"{where}: unknown option(s) {', '.join(unknown)}; expected some of "
            f"{', '.join(known) or 'none'}"
        )


def file_name(key: str, suffix: str = "") -> str:
    """Return a file name for a key, such as an utterance id.

    Different keys have different names, no name leaves its directory, and none is too
    long for a file system: a long name ends in a digest of the key.

    Args:
        key: Any string.
        suffix: Appended to the name, such as `.srt`.
    """
    name = "".join(
        (
            quote(c, safe="", errors="surrogateescape")
            if c in UNSAFE_CHARACTERS or not c.isprintable()
            else c
        )
        for c in key
    )
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    encoded = name.encode()
    if len(encoded) + len(suffix) > MAX_NAME_BYTES:
        digest = hashlib.blake2b(encoded, digest_size=16).hexdigest()
        start = encoded[: MAX_NAME_BYTES - len(suffix) - len(digest) - 2]
        # A "%" that no hexadecimal digit follows occurs in no short name.
        name = f"{start.decode(errors='ignore')}%-{digest}"
    return name + suffix


def read_scp(
    path: Union[str, Path], check: Optional[Callable[[str], Any]] = None
) -> Dict[str, str]:
    """Read a Kaldi table: a key, white space, the rest of the line.

    A byte order mark and Windows line ends are dropped.

    Args:
        path: A file such as `wav.scp`, `text` or `utt2spk`.
        check: Called with each value; raises ValueError if the value is not valid.

    Returns:
        Values by key, in the file's order. A key without a value has the value "".

    Raises:
        ValueError: The file is missing or not UTF-8, a key occurs twice, or a line or
            value is not valid. The file and the line are named.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    table: Dict[str, str] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig")  # of joined files, each may have a mark
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8: {error}") from error
            fields = text.strip().split(maxsplit=1)
            if not fields:
                continue
            if "\r" in fields[-1]:  # others would read several lines
                raise ValueError(
                    f"{path}:{number}: a carriage return inside the line; end lines "
                    "with a line feed"
                )
            key, value = fields[0], fields[1] if len(fields) == 2 else ""
            if key in table:
                raise ValueError(f"{path}:{number}: the key {key} occurs twice")
            if check is not None:
                try:
                    check(value)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: {key}: {error}") from error
            table[key] = value
    return table


def not_empty(value: str) -> None:
    """Check, for `read_scp`, that a key has a value.

    Raises:
        ValueError: The value is empty.
    """
    if not value:
        raise ValueError("expected a value after the key, got none")


def write_scp(path: Union[str, Path], table: Dict[str, str]) -> None:
    """Write a Kaldi table, sorted by key as Kaldi and ESPnet expect it."""
    lines = (f"{key} {table[key]}".rstrip() + "\n" for key in sorted(table))
    write_text(path, "".join(lines))


def progress(
    iterable: Optional[Iterable] = None,
    what: str = "",
    unit: str = "utterances",
    **options: Any,
) -> tqdm:
    """Return a tqdm bar that writes lines to stderr, at most one every 30 seconds.

    Lines, because stderr is a log file in most stages.

    Args:
        iterable: What to iterate over; None: the caller calls `update`.
        what: The work, named first in each line.
        unit: What is counted.
        options: Other options of tqdm, such as `total`.

    Examples:
        >>> for path in progress(paths, "checksums", unit="files"):
        ...     check(path)
    """
    return tqdm(
        iterable,
        desc=what,
        unit=f" {unit}",
        file=sys.stderr,
        mininterval=SECONDS_BETWEEN_REPORTS,
        maxinterval=SECONDS_BETWEEN_REPORTS,
        bar_format="{desc}: {n_fmt} of {total_fmt}{unit}{postfix}, {rate_noinv_fmt}, "
        "{remaining} left\n",
        **options,
    )


def default_cache() -> Path:
    """Return the cache of fetched models, espnet_dus in ~/.cache or $XDG_CACHE_HOME."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "espnet_dus"
