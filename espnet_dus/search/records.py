"""What has been decoded so far, kept line by line so that an interrupted run resumes.

hypotheses.partial.jsonl    during a run: what the run is, then a line per utterance
hypotheses.jsonl            at the end: a line per utterance, sorted
"""

import json
import logging
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Union

from espnet_dus.io import write_text
from espnet_dus.search.result import Hypothesis


class Decoded(NamedTuple):
    """A decoded utterance."""

    nbest: List[Hypothesis]  # the best first; at least one
    length: int  # samples, or feature frames
    seconds: float  # its share of its batch's decoding time


class Records:
    """The decoded utterances of a run.

    Args:
        directory: Directory of the files.
        run: What determines the results (model, options, data). A file left by a
            different run is replaced.
    """

    def __init__(self, directory: Union[str, Path], run: Dict[str, Any]):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.partial = self.directory / "hypotheses.partial.jsonl"
        self.done: Dict[str, Decoded] = {}
        head = json.dumps({"run": run}, sort_keys=True)
        lines = []
        if self.partial.is_file():
            # what follows the last line break was cut off by the interruption, maybe
            # inside a character
            whole, _, _ = self.partial.read_bytes().rpartition(b"\n")
            lines = whole.decode().split("\n")
        if lines[:1] == [head]:
            for line in lines[1:]:
                content = json.loads(line)
                nbest = [Hypothesis(**h) for h in content["nbest"]]
                record = Decoded(nbest, content["length"], content["seconds"])
                self.done[content["key"]] = record
            logging.info(
                f"{self.partial}: resuming, {len(self.done)} utterances are decoded"
            )
        elif lines:
            logging.info(f"{self.partial} is from a different run: starting over")
            lines = []
        lines = lines or [head]
        write_text(self.partial, "".join(f"{line}\n" for line in lines))

    def add(self, records: Dict[str, Decoded]) -> None:
        """Keep the records of a batch."""
        self.done.update(records)
        with self.partial.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, records, records.values())))

    def finish(self, keys: Sequence[str]) -> None:
        """Replace the partial file by the finished one.

        Args:
            keys: The utterances of this run; one with other jobs may have left more.
        """
        lines = (_line(key, self.done[key]) for key in sorted(keys))
        write_text(self.directory / "hypotheses.jsonl", "".join(lines))
        self.partial.unlink()


def _line(key: str, record: Decoded) -> str:
    content = {
        "key": key,
        "length": record.length,
        "seconds": record.seconds,
        "nbest": [hypothesis._asdict() for hypothesis in record.nbest],
    }
    return json.dumps(content, ensure_ascii=False) + "\n"
