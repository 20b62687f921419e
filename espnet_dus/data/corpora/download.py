"""Archives of corpora: downloaded and extracted completely or not at all."""

import logging
import tarfile
import tempfile
from pathlib import Path
from typing import Callable, Optional

import pooch

from espnet_dus.io import progress


def download(url: str, path: Path, md5: Optional[str] = None) -> None:
    """Download a file.

    Args:
        url: The URL.
        path: The file to write.
        md5: The expected MD5; None: it is not checked.

    Raises:
        RuntimeError: The download failed, or the file is not the expected one.
    """
    # pooch sets the total, but asks for one first.
    bar = progress(what=url, unit="bytes", unit_scale=True, total=1)
    fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 20, timeout=60)
    known_hash = None if md5 is None else f"md5:{md5}"
    try:
        pooch.retrieve(url, known_hash, path.name, path.parent, downloader=fetch)
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"cannot download {url}: {error}. Get the corpus by other means and set "
            "its directory in db.sh"
        ) from error


def extract_one(
    archive: Path, root: Path, is_corpus: Callable[[Path], bool], name: str
) -> None:
    """Extract the one corpus of an archive.

    Args:
        archive: A tar file.
        root: The corpus's directory, which must not exist.
        is_corpus: Returns whether a directory is the corpus.
        name: Name of the corpus, for messages.

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
