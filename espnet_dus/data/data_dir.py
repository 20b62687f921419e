"""Kaldi data directories: read, check, combine, write."""

import math
import os
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Sequence, Tuple, Union

from espnet_dus.io import not_empty, read_scp, write_scp, write_text

UTTERANCE_TABLES = (
    "text",
    "prompt",  # optional: text before the speech, such as an instruction
    "utt2spk",
    "segments",
    "utt2speed",
    "feats.scp",
    "run_lengths.scp",
    "utt2num_samples",
    "utt2num_frames",
)
# wav.scp is keyed by recording, which is the utterance where there are no segments.
TABLES = (*UTTERANCE_TABLES, "wav.scp")
# One-line files that hold for the whole directory; stage 3 writes them.
ATTRIBUTES = ("feats_type", "audio_format", "feats_dim", "fs", "tokenizer")
FEW = 10  # faults that a message lists


class Utterance(NamedTuple):
    """Where one utterance's audio is.

    Attributes:
        id: The utterance's key.
        wav: A path, or a command that ends in `|`, as in wav.scp.
        start: Start in the recording, in seconds.
        end: End in the recording, in seconds; -1 is the recording's end.
        speed: Speed factor; 1.1 is faster, shorter and higher in pitch.
    """

    id: str
    wav: str
    start: float = 0.0
    end: float = -1.0
    speed: float = 1.0


@dataclass
class DataDir:
    """The tables of one data directory.

    Attributes:
        path: The directory it was read from, for messages.
        tables: Values by key, by file name (see `TABLES`).
        attributes: Contents of one-line files, by file name (see `ATTRIBUTES`).
    """

    path: Path
    tables: Dict[str, Dict[str, str]]
    attributes: Dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Union[str, Path]) -> "DataDir":
        """Read every known file of a directory; `validate` says whether they agree.

        Args:
            path: A data directory, or the same after stage 3 or 4.

        Raises:
            ValueError: There is no such directory, or a line of a table is not valid;
                the file and the line are named.
        """
        path = Path(path)
        if not path.is_dir():
            raise ValueError(f"{path}: no such data directory")
        tables = {}
        for name in TABLES:
            if (path / name).exists():
                tables[name] = read_scp(path / name, CHECKS.get(name))
        attributes = {
            name: (path / name).read_text(encoding="utf-8-sig").strip()
            for name in ATTRIBUTES
            if (path / name).exists()
        }
        return cls(path, tables, attributes)

    def write(self, path: Union[str, Path]) -> None:
        """Write the tables, sorted, with spk2utt derived from utt2spk.

        `text` is removed first and written last: while it exists, the directory is
        whole. Tables of an earlier run that this one lacks are removed.
        """
        path = Path(path)
        (path / "text").unlink(missing_ok=True)
        speakers: Dict[str, List[str]] = {}
        for utterance, speaker in sorted(self.tables["utt2spk"].items()):
            speakers.setdefault(speaker, []).append(utterance)
        spk2utt = {speaker: " ".join(ids) for speaker, ids in speakers.items()}
        tables = {**self.tables, "spk2utt": spk2utt}
        text = tables.pop("text")
        for name in (*TABLES, *ATTRIBUTES):
            if name not in tables and name not in self.attributes:
                (path / name).unlink(missing_ok=True)
        for name, value in self.attributes.items():
            with explain_write_errors(path / name):
                write_text(path / name, f"{value}\n")
        for name, table in (*tables.items(), ("text", text)):
            with explain_write_errors(path / name):
                write_scp(path / name, table)

    def __len__(self) -> int:
        """Return the number of utterances."""
        return len(self.tables["text"])

    def validate(self, empty_text: bool = False) -> None:
        """Check that the tables agree.

        Args:
            empty_text: Whether an utterance may have an empty transcript.

        Raises:
            ValueError: They do not agree; the first faults and their number are named.
        """
        faults = list(self._faults(empty_text))
        if faults:
            raise ValueError(first_few(f"{self.path} is not valid", faults))

    def _faults(self, empty_text: bool) -> Iterator[str]:
        places = ("segments", "wav.scp", "feats.scp")
        audio = next((name for name in places if name in self.tables), "wav.scp")
        needed = ["text", "utt2spk", audio]
        if audio == "segments":
            needed.append("wav.scp")
        missing = [name for name in needed if name not in self.tables]
        yield from (f"{self.path / name}: no such file" for name in missing)
        if missing:
            return
        text = self.tables["text"]
        if not text:
            yield f"{self.path / 'text'}: no utterances"
        for name in UTTERANCE_TABLES + ((audio,) if audio == "wav.scp" else ()):
            table = self.tables.get(name, text)
            for key in sorted(text.keys() - table.keys()):
                yield f"utterance {key} is in {self.path / 'text'}, not in {name}"
            for key in sorted(table.keys() - text.keys()):
                yield f"utterance {key} is in {self.path / name}, not in text"
        for key, words in text.items():
            if not words and not empty_text:
                yield f"utterance {key} has no transcript in {self.path / 'text'}"
        for key, value in self.tables.get("segments", {}).items():
            recording = parse_segment(value)[0]
            if recording not in self.tables["wav.scp"]:
                yield (
                    f"utterance {key} in {self.path / 'segments'}: recording "
                    f"{recording} is not in wav.scp"
                )

    def utterances(self) -> List[Utterance]:
        """Return where the audio of every utterance is, sorted by key.

        Raises:
            ValueError: The directory has features only.
        """
        if "wav.scp" not in self.tables:
            raise ValueError(
                f"{self.path / 'wav.scp'}: no such file; features of another tool are "
                "not read"
            )
        wav_scp, segments = self.tables["wav.scp"], self.tables.get("segments")
        speeds = self.tables.get("utt2speed", {})
        utterances = []
        for key in sorted(self.tables["text"]):
            recording, start, end = key, 0.0, -1.0
            if segments is not None:
                recording, start, end = parse_segment(segments[key])
            speed = parse_speed(speeds.get(key, "1.0"))
            utterances.append(Utterance(key, wav_scp[recording], start, end, speed))
        return utterances

    def subset(self, keys: Iterable[str]) -> "DataDir":
        """Return a copy with only the utterances `keys`, in every table."""
        keys = set(keys)
        tables = {
            name: {key: value for key, value in table.items() if key in keys}
            for name, table in self.tables.items()
            if name != "wav.scp"
        }
        if "wav.scp" in self.tables:
            if "segments" in tables:
                keys = {
                    parse_segment(value)[0] for value in tables["segments"].values()
                }
            wav_scp = self.tables["wav.scp"]
            tables["wav.scp"] = {key: wav_scp[key] for key in wav_scp if key in keys}
        return replace(self, tables=tables)

    def prefixed(self, prefix: str) -> "DataDir":
        """Return a copy with `prefix` before every utterance and speaker.

        Recordings of segments keep their names: they are the same recordings.
        """
        tables = {}
        for name, table in self.tables.items():
            if name == "wav.scp" and "segments" in self.tables:
                tables[name] = dict(table)
            else:
                tables[name] = {prefix + key: value for key, value in table.items()}
        tables["utt2spk"] = {
            key: prefix + speaker for key, speaker in tables["utt2spk"].items()
        }
        return replace(self, tables=tables)

    @staticmethod
    def combine(parts: Sequence["DataDir"]) -> "DataDir":
        """Join directories that have the same tables.

        Raises:
            ValueError: Their tables differ, an utterance occurs in two parts, or a
                recording does with different audio.
        """
        tables: Dict[str, Dict[str, str]] = {name: {} for name in parts[0].tables}
        for part in parts:
            if differing := sorted(part.tables.keys() ^ tables.keys()):
                raise ValueError(
                    f"{part.path} and {parts[0].path}: only one of them has "
                    f"{', '.join(differing)}: write such a file for both, or for none"
                )
            for name, table in part.tables.items():
                for key in tables[name].keys() & table.keys():
                    if name != "wav.scp" or tables[name][key] != table[key]:
                        raise ValueError(
                            f"{part.path / name}: the key {key} is also in another of "
                            "the directories to combine; give one of them a prefix"
                        )
                tables[name].update(table)
        return DataDir(parts[0].path, tables)


def parse_segment(value: str) -> Tuple[str, float, float]:
    """Read `recording start end` (seconds; end -1 is the recording's end)."""
    fields = value.split()
    try:
        recording, start, end = fields[0], float(fields[1]), float(fields[2])
        well_formed = len(fields) == 3 and 0 <= start < math.inf
        well_formed &= end == -1 or start < end < math.inf
    except (IndexError, ValueError):
        well_formed = False
    if not well_formed:
        raise ValueError(
            f"expected 'recording start end' in seconds with 0 <= start < end, "
            f"got '{value}'"
        )
    return recording, start, end


def parse_speed(value: Union[str, float]) -> float:
    """Read a speed factor; beyond 0.5 to 2 it is not speech."""
    try:
        speed = float(value)
    except ValueError:
        speed = float("nan")
    if not 0.5 <= speed <= 2:
        raise ValueError(f"expected a speed factor from 0.5 to 2, got '{value}'")
    return speed


def parse_channel(text: Union[int, str, None]) -> Union[int, str, None]:
    """Read a channel: an index from 0, `mean`, or None.

    Raises:
        ValueError: It is none of these.
    """
    if text is None or text == "mean":
        return text
    if str(text).isdecimal():
        return int(text)
    raise ValueError(f"expected the index of a channel (from 0) or mean, got '{text}'")


def _parse_count(value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"expected a number of samples or frames, got '{value}'")
    return int(value)


def _parse_speaker(value: str) -> str:
    if len(value.split()) != 1:
        raise ValueError(f"expected one speaker, got '{value}'")
    return value


# What a value must be, by table.
CHECKS = {
    "wav.scp": not_empty,
    "feats.scp": not_empty,
    "prompt": not_empty,
    "utt2spk": _parse_speaker,
    "segments": parse_segment,
    "utt2speed": parse_speed,
    "utt2num_samples": _parse_count,
    "utt2num_frames": _parse_count,
}


def first_few(heading: str, faults: Sequence[str]) -> str:
    """Return one message for many faults: their number and the first of them."""
    lines = [f"{heading}: {len(faults)} fault{'s' if len(faults) > 1 else ''}"]
    lines += [f"  {fault}" for fault in faults[:FEW]]
    if len(faults) > FEW:
        lines.append(f"  ... and {len(faults) - FEW} more")
    return "\n".join(lines)


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Name the file and its directory if it cannot be written (a full disk).

    The block must not do any other input or output.
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno)} while writing {path.name} in {path.parent}; "
            "fix that and run the same command again: it resumes",
        ) from error
