"""Stage 2: speed perturbation, as a table that stage 3 applies."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Sequence, Union

from espnet_dus.data.data_dir import DataDir, parse_speed


def perturb_speed(
    data_dir: Union[str, Path], factors: Sequence[float], out_dir: Union[str, Path]
) -> None:
    """Write a data directory that holds every utterance at every speed.

    The audio files are unchanged: stage 3 reads each utterance at its speed in the
    table `utt2speed`. At speeds other than 1, utterances and speakers get a prefix such
    as `sp0.9-`.

    Args:
        data_dir: The data directory to read.
        factors: Speed factors; the original, 1.0, is kept only if listed.
        out_dir: The data directory to write.

    Raises:
        ValueError: A factor is out of range or occurs twice, or the data directory is
            not valid or already perturbed.
    """
    speeds = [parse_speed(factor) for factor in factors]
    if not speeds or len(set(speeds)) != len(speeds):
        raise ValueError(f"expected speed factors, each once, got {list(factors)}")
    if Path(data_dir).resolve() == Path(out_dir).resolve():
        raise ValueError(f"{out_dir}: cannot be both the input and the output")
    data = DataDir.read(data_dir)
    data.validate(empty_text=True)
    if "utt2speed" in data.tables:
        raise ValueError(
            f"{data.path / 'utt2speed'}: speed perturbation was already applied"
        )
    parts = []
    for speed in speeds:
        part = data if speed == 1.0 else data.prefixed(f"sp{speed}-")
        utt2speed = {key: str(speed) for key in part.tables["text"]}
        parts.append(replace(part, tables={**part.tables, "utt2speed": utt2speed}))
    combined = DataDir.combine(parts)
    combined.write(out_dir)
    logging.info("%s: %d utterances at speeds %s", out_dir, len(combined), speeds)
