"""Files that are either whole or absent, and Kaldi's two-column tables."""

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, Union


@contextmanager
def atomic_path(path: Union[str, Path]) -> Iterator[Path]:
    """Give a temporary path that becomes `path` if the block succeeds.

    The temporary file stands in the same directory, so that the rename is atomic: a
    reader, or a second run after an interruption, sees the whole file or none.

    Args:
        path: Where the finished file is to stand. Its directory is made.

    Yields:
        The path to write to, with the same suffix as `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Union[str, Path], text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_scp(path: Union[str, Path]) -> Dict[str, str]:
    """Read a Kaldi table: a key, white space, the rest of the line.

    Args:
        path: A file such as `wav.scp`, `text` or `utt2spk`.

    Returns:
        Values by key, in the file's order. A key that stands alone has the value "".

    Raises:
        ValueError: The file is missing, or a key occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    table: Dict[str, str] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.strip().split(maxsplit=1)
            if not fields:
                continue
            if fields[0] in table:
                raise ValueError(f"{path}:{number}: the key {fields[0]} occurs twice")
            table[fields[0]] = fields[1] if len(fields) == 2 else ""
    return table


def write_scp(path: Union[str, Path], table: Dict[str, str]) -> None:
    """Write a Kaldi table, sorted by key as Kaldi and ESPnet expect it."""
    lines = (f"{key} {table[key]}".rstrip() + "\n" for key in sorted(table))
    write_text(path, "".join(lines))
