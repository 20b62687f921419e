"""Lhotse Shar shards: speech and transcripts in files that are read from start to end.

    out_dir/info.json                       what it was made of, and how much it is
    out_dir/shards/cuts.000000.jsonl.gz     ids, transcripts, speakers, durations
    out_dir/shards/recording.000000.tar     the audio, in the same order, or
    out_dir/shards/tokens.000000.tar        speech tokens (F, K), int16 or int32

This module holds the names of these files and reads what a directory describes;
`shar_writer` writes it.

Dimensions: F frames, K streams.
"""

import json
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Union

from lhotse.serialization import load_jsonl

AUDIO, TOKENS = "recording", "tokens"  # what a shard holds, an attribute of its cuts


class ShardInfo(NamedTuple):
    """What a directory of shards holds.

    Attributes:
        source: Digest of what it was made of.
        num_shards: Number of shards.
        num_utterances: Number of utterances.
        seconds: Their duration.
        tokenizer: Name and sha256 of the speech tokenizer; None: they hold audio.
    """

    source: str
    num_shards: int
    num_utterances: int
    seconds: float
    tokenizer: Optional[Dict[str, str]] = None

    @property
    def field(self) -> str:
        """`AUDIO` or `TOKENS`."""
        return AUDIO if self.tokenizer is None else TOKENS


def read_info(shard_dir: Union[str, Path]) -> ShardInfo:
    """Read what a directory of shards holds.

    Raises:
        ValueError: It is not such a directory.
    """
    path = Path(shard_dir, "info.json")
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; expected a directory of shards, which stage 4 "
            "writes with --feats_type shar or tokens_shar"
        )
    return ShardInfo(**json.loads(path.read_text(encoding="utf-8")))


def list_shards(shard_dir: Union[str, Path]) -> List[Dict[str, str]]:
    """List a directory's shards, as `CutSet.from_shar(fields=...)` names their files.

    Raises:
        ValueError: Files are missing or too many.
    """
    info = read_info(shard_dir)
    shards = [
        {"cuts": str(cuts), info.field: str(tar_beside(cuts, info.field))}
        for cuts in sorted(Path(shard_dir, "shards").glob("cuts.*.jsonl.gz"))
    ]
    if len(shards) != info.num_shards:
        raise ValueError(
            f"{shard_dir}: {len(shards)} shards, info.json says {info.num_shards}; "
            "delete the directory and run stage 4 again"
        )
    return shards


def read_texts(shard_dir: Union[str, Path]) -> Iterator[str]:
    """Yield the transcript of each utterance of a directory of shards."""
    for shard in list_shards(shard_dir):
        for cut in load_jsonl(shard["cuts"]):
            yield cut["supervisions"][0]["text"]


def tar_beside(cuts_path: Path, field: str) -> Path:
    """Return the tar file beside a shard's cuts."""
    number = cuts_path.name.split(".")[1]
    return cuts_path.with_name(f"{field}.{number}.tar")
