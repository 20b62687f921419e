"""The journal of stage 3, by which a second run dumps only what is missing or changed.

A line for each finished utterance; an interrupted run may have cut the last one short.
"""

import functools
import os
from pathlib import Path
from typing import Dict, NamedTuple

from espnet_dus.data.data_dir import explain_write_errors
from espnet_dus.io import write_text


class Record(NamedTuple):
    """One finished utterance, as a line of the journal.

    Attributes:
        num_samples: Length in samples at the dump's rate.
        num_frames: Length in feature frames or tokens, 0 for audio.
        size: Bytes of the file that holds it.
        location: The file below the dump directory; in an ark, with `:offset`.
        digest: Digest of all that the result depends on. It is the last field, so that
            a truncated line never looks complete.
    """

    num_samples: int
    num_frames: int
    size: int
    location: str
    digest: str = ""

    @property
    def file(self) -> str:
        """The file below the dump directory."""
        return self.location.rsplit(":", 1)[0]

    @property
    def ark_number(self) -> int:
        """The number of its ark; 0: it is in none."""
        name = Path(self.file).name.split(".")
        return int(name[1]) if name[0] == "feats" and name[-1] == "ark" else 0


Done = Dict[str, Record]


def read_journal(journal: Path) -> Done:
    """Return the finished utterances of earlier runs by id; none without a journal."""
    records: Done = {}
    if journal.exists():
        for line in journal.read_text(encoding="utf-8").splitlines():
            fields = line.split(" ")
            if len(fields) == 6:  # a line that was cut short is an utterance to redo
                key, samples, frames, size, location, digest = fields
                records[key] = Record(
                    int(samples), int(frames), int(size), location, digest
                )
    return records


def _journal_lines(records: Done) -> str:
    return "".join(
        " ".join(map(str, (key, *record))) + "\n" for key, record in records.items()
    )


def append_journal(journal: Path, records: Done) -> None:
    """Add finished utterances."""
    # The line break first: an earlier run may have been stopped within a line.
    with explain_write_errors(journal):
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("a", encoding="utf-8") as file:
            file.write("\n" + _journal_lines(records))


def still_good(recorded: Done, digests: Dict[str, str], out_dir: Path) -> Done:
    """Return the records whose sources, options and files are unchanged."""

    @functools.lru_cache(maxsize=1024)  # utterances share their ark
    def size(file: str) -> int:
        try:
            return os.stat(out_dir / file).st_size
        except OSError:
            return -1

    return {
        key: record
        for key, record in recorded.items()
        if digests.get(key) == record.digest and size(record.file) == record.size
    }


def tidy(journal: Path, recorded: Done, done: Done, out_dir: Path) -> None:
    """Remove the files that only earlier runs needed, and their lines."""
    needed = {record.file for record in done.values()}
    for file in {record.file for record in recorded.values()} - needed:
        (out_dir / file).unlink(missing_ok=True)
        (out_dir / of_run_lengths(file)).unlink(missing_ok=True)
    with explain_write_errors(journal):
        write_text(journal, _journal_lines(done))


def of_run_lengths(location: str) -> str:
    """Return the location of run lengths, which are stored like their tokens."""
    return location.replace("data/feats.", "data/run_lengths.", 1)
