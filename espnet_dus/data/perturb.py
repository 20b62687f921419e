"""Stage 2: speed perturbation, as a table that stage 3 carries out."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Sequence, Union

from espnet_dus.data.data_dir import DataDir, parse_speed


def perturb_speed(
    data_dir: Union[str, Path], factors: Sequence[float], out_dir: Union[str, Path]
) -> None:
    """Write a data directory that holds every utterance at every speed.

    The audio is the same: the table `utt2speed` says at which speed it is to be read.
    Utterances and speakers of a speed other than 1 get a prefix such as `sp0.9-`.

    Args:
        data_dir: The data directory to take.
        factors: Speed factors; 1.0 is the original, and is only kept if named.
        out_dir: The data directory to write.

    Raises:
        ValueError: A factor is out of range or occurs twice, or the data directory is
            not valid or has been perturbed already.
    """
    speeds = [parse_speed(factor) for factor in factors]
    if not speeds or len(set(speeds)) != len(speeds):
        raise ValueError(f"expected speed factors, each once, got {list(factors)}")
    if Path(data_dir).resolve() == Path(out_dir).resolve():
        raise ValueError(f"{out_dir}: cannot be both the input and the output")
    data = DataDir.read(data_dir)
    data.validate(empty_text=True)
    if "utt2speed" in data.tables:
        raise ValueError(f"{data.path / 'utt2speed'}: its speed is perturbed already")
    parts = []
    for speed in speeds:
        part = data if speed == 1.0 else data.prefixed(f"sp{speed}-")
        utt2speed = {key: str(speed) for key in part.tables["text"]}
        parts.append(replace(part, tables={**part.tables, "utt2speed": utt2speed}))
    combined = DataDir.combine(parts)
    combined.write(out_dir)
    logging.info("%s: %d utterances at speeds %s", out_dir, len(combined), speeds)
