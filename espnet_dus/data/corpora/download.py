"""Archives of corpora: fetched and extracted wholly or not at all."""

import hashlib
import logging
import tarfile
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Callable, Optional

from espnet_dus.io import atomic_path


def download(url: str, path: Path, md5: Optional[str] = None) -> None:
    """Download a file.

    Args:
        url: Where it is.
        path: Where it goes.
        md5: What it must have; None: only its length is checked.

    Raises:
        RuntimeError: The download fails, or the file is not the expected one.
    """
    logging.info("downloading %s to %s", url, path)
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as out:
            with urllib.request.urlopen(url, timeout=60) as source:
                size = int(source.headers.get("Content-Length", 0))
                started = reported = time.time()
                while block := source.read(1 << 20):
                    out.write(block)
                    digest.update(block)
                    if size and time.time() - reported > 5:
                        reported = time.time()
                        share = out.tell() / size
                        left = (reported - started) * (1 / share - 1)
                        logging.info("%s: %.0f %%, %.0f s left", url, 100 * share, left)
                if size and out.tell() != size:
                    raise OSError(f"got {out.tell()} of {size} bytes")
            if md5 is not None and digest.hexdigest() != md5:
                raise OSError(f"its MD5 is {digest.hexdigest()}, expected {md5}")
    except OSError as error:
        raise RuntimeError(
            f"cannot download {url}: {error}. Get the corpus by other means and name "
            "its directory in db.sh"
        ) from error


def extract_one(
    archive: Path, root: Path, is_corpus: Callable[[Path], bool], name: str
) -> None:
    """Extract the one corpus of an archive.

    Args:
        archive: A tar file.
        root: The corpus's directory, which must not exist.
        is_corpus: Tells whether a directory is what is wanted.
        name: Of the corpus, for messages.

    Raises:
        ValueError: The archive is damaged, would write outside, or does not hold
            exactly one such directory.
    """
    logging.info("extracting %s", archive)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".extract.") as directory:
        try:
            with tarfile.open(archive) as tar:
                # The filter refuses members that would land outside of the directory.
                tar.extractall(directory, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(
                f"{archive}: not an archive that can be extracted: {error}. If it was "
                "downloaded, delete it and start again"
            ) from error
        found = [path for path in Path(directory).rglob("*") if path.is_dir()]
        found = [path for path in [Path(directory), *found] if is_corpus(path)]
        if len(found) != 1:
            raise ValueError(
                f"{archive}: expected one {name} in it, found {len(found)}"
            )
        found[0].rename(root)
