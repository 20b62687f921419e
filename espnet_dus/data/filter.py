"""Stage 4: leave out utterances that are too short, too long or not transcribed."""

import logging
from pathlib import Path
from typing import Dict, List, Union

from espnet_dus.data.data_dir import DataDir


def filter_data(
    in_dir: Union[str, Path],
    out_dir: Union[str, Path],
    min_wav_duration: float = 0.1,
    max_wav_duration: float = 20.0,
) -> None:
    """Copy the tables of utterances with min < duration < max and a transcript.

    Args:
        in_dir: A directory written by stage 3.
        out_dir: The directory to write; its tables refer to the files of `in_dir`.
        min_wav_duration: Utterances must be longer than this (seconds).
        max_wav_duration: Utterances must be shorter than this (seconds).

    Raises:
        ValueError: The limits are not in order, `in_dir` is not a dump, or no
            utterance is left.
    """
    if not 0 <= min_wav_duration < max_wav_duration:
        raise ValueError(
            "expected 0 <= min_wav_duration < max_wav_duration, got "
            f"{min_wav_duration} and {max_wav_duration}"
        )
    if Path(in_dir).resolve() == Path(out_dir).resolve():
        raise ValueError(f"{out_dir}: cannot be both the input and the output")
    data = DataDir.read(in_dir)
    data.validate(empty_text=True)
    if "utt2num_samples" not in data.tables or "fs" not in data.attributes:
        raise ValueError(
            f"{in_dir}: expected the files utt2num_samples and fs, which stage 3 "
            "writes; run it first"
        )
    fs = int(data.attributes["fs"])
    # Rounded, since 0.07 * 16000 is slightly above 1120 in floating point.
    shortest, longest = round(min_wav_duration * fs, 3), round(max_wav_duration * fs, 3)
    dropped: Dict[str, List[str]] = {"too short": [], "too long": [], "empty text": []}
    kept: Dict[str, int] = {}
    for key, value in data.tables["utt2num_samples"].items():
        samples = int(value)
        if samples <= shortest:
            dropped["too short"].append(key)
        elif samples >= longest:
            dropped["too long"].append(key)
        elif not data.tables["text"][key]:
            dropped["empty text"].append(key)
        else:
            kept[key] = samples
    report = ", ".join(f"{len(keys)} {reason}" for reason, keys in dropped.items())
    if not kept:
        raise ValueError(
            f"{in_dir}: none of {len(data)} utterances is left ({report}; limits "
            f"{min_wav_duration} and {max_wav_duration} s)"
        )
    data.subset(kept).write(out_dir)
    for reason, keys in dropped.items():
        if keys:
            more = " ..." if len(keys) > 5 else ""
            logging.info("%s: %s%s", reason, " ".join(keys[:5]), more)
    logging.info(
        "%s: kept %d of %d utterances (%.2f h); dropped: %s",
        out_dir,
        len(kept),
        len(data),
        sum(kept.values()) / fs / 3600,
        report,
    )
