"""What has been decoded so far, kept line by line so that a killed run goes on.

hypotheses.partial.jsonl    while it runs: what run this is, then a line for each
                            utterance
hypotheses.jsonl            at the end: a line for each utterance, sorted
"""

import json
import logging
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Union

from espnet_dus.io import write_text
from espnet_dus.search.result import Hypothesis


class Record(NamedTuple):
    """An utterance that is done.

    Attributes:
        nbest: Its hypotheses, the best first; there is at least one.
        length: Samples, or feature frames.
        seconds: Its share of its batch's time.
    """

    nbest: List[Hypothesis]
    length: int
    seconds: float


class Records:
    """The records of a run, by utterance.

    Args:
        directory: Where the files stand.
        run: What decides on the results (model, options, data). A file that another
            run has left is not gone on with but replaced.
    """

    def __init__(self, directory: Union[str, Path], run: Dict[str, Any]):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.partial = self.directory / "hypotheses.partial.jsonl"
        self.done: Dict[str, Record] = {}
        head = json.dumps({"run": run}, sort_keys=True)
        lines = []
        if self.partial.is_file():
            # what follows the last line break was cut off in the writing
            lines = self.partial.read_text("utf-8").split("\n")[:-1]
        if lines[:1] == [head]:
            for line in lines[1:]:
                content = json.loads(line)
                nbest = [Hypothesis(**h) for h in content["nbest"]]
                record = Record(nbest, content["length"], content["seconds"])
                self.done[content["key"]] = record
            logging.info(
                f"{self.partial}: {len(self.done)} utterances were decoded before"
            )
        elif lines:
            logging.info(f"{self.partial} is another run's: all is decoded anew")
            lines = []
        lines = lines or [head]
        write_text(self.partial, "".join(f"{line}\n" for line in lines))

    def add(self, records: Dict[str, Record]) -> None:
        """Keep the records of a batch."""
        self.done.update(records)
        with self.partial.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, records, records.values())))

    def finish(self) -> None:
        """Replace the file of the running run by that of a finished one."""
        lines = (_line(key, self.done[key]) for key in sorted(self.done))
        write_text(self.directory / "hypotheses.jsonl", "".join(lines))
        self.partial.unlink()


def _line(key: str, record: Record) -> str:
    content = {
        "key": key,
        "length": record.length,
        "seconds": record.seconds,
        "nbest": [hypothesis._asdict() for hypothesis in record.nbest],
    }
    return json.dumps(content, ensure_ascii=False) + "\n"
