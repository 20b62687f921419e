"""The English ASR part of OWSM v3.2, from data directories of ESPnet's recipes.

`egs2/owsm_v3/s2t1/local` writes utterances of many languages and tasks, whose ids end
in `_<language>_<task>`, with the plain transcript in `text.ctc`;
`egs2/owsm_v3.2/speechlm1` has it in `text`.
"""

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Dict, Sequence, Union

from espnet_dus.data.corpora.held_out import HeldOut
from espnet_dus.data.corpora.normalize import normalize_text
from espnet_dus.data.data_dir import DataDir, parse_segment
from espnet_dus.io import progress, read_scp

ENGLISH_ASR = "_eng_asr"
MARKS = re.compile(r"<[^<>\s]*>")  # <eng>, <asr>, <0.00>, <na>


def prepare_owsm(
    data_dirs: Sequence[Union[str, Path]],
    out_dir: Union[str, Path],
    held_out: Sequence[Union[str, Path]],
    min_duration: float = 3.0,
    max_duration: float = 30.0,
) -> float:
    """Write a data directory of the English ASR utterances that may be trained on.

    Transcripts are brought to LibriSpeech's convention; those that cannot be written as
    words, such as digits, are left out. Each reason is counted in the log, in hours.

    Args:
        data_dirs: ESPnet's data directories, with `segments`.
        out_dir: The data directory to write.
        held_out: Data directories whose sentences must not be trained on.
        min_duration: Shortest utterance, in seconds.
        max_duration: Longest utterance, in seconds.

    Returns:
        Hours that are kept.

    Raises:
        ValueError: A directory lacks a table or a recording, an utterance occurs twice,
            a recording does with other audio, or nothing is left.
    """
    tables: Dict[str, Dict[str, str]] = {
        name: {} for name in ("text", "utt2spk", "segments", "wav.scp")
    }
    hours: Counter = Counter()
    unwanted = HeldOut.read(held_out)
    for directory in map(Path, data_dirs):
        plain = directory / "text.ctc"
        texts = read_scp(plain if plain.is_file() else directory / "text")
        segments = read_scp(directory / "segments", parse_segment)
        recordings = read_scp(directory / "wav.scp")
        for key, text in progress(texts.items(), str(directory), total=len(texts)):
            if not key.endswith(ENGLISH_ASR):
                continue
            if key not in segments:
                raise ValueError(f"{directory / 'segments'}: no utterance {key}")
            recording, start, end = parse_segment(segments[key])
            share = (end - start) / 3600
            try:
                words = normalize_text(MARKS.sub(" ", text))
            except ValueError:
                hours["transcript that cannot be written as words"] += share
                continue
            if not min_duration <= end - start <= max_duration:
                hours["too short or too long"] += share
            elif reason := unwanted.reason(words, None):
                hours[reason] += share
            elif key in tables["text"]:
                raise ValueError(f"{directory}: the utterance {key} occurs twice")
            else:
                hours["kept"] += share
                tables["text"][key] = words
                tables["utt2spk"][key] = key  # speakers are not recorded
                tables["segments"][key] = segments[key]
                audio = recordings.get(recording)
                if audio is None:
                    raise ValueError(f"{directory / 'wav.scp'}: no {recording}")
                if tables["wav.scp"].setdefault(recording, audio) != audio:
                    raise ValueError(
                        f"{directory / 'wav.scp'}: {recording} is another file than in "
                        "a directory before"
                    )
    for reason, number in hours.most_common():
        logging.info(f"{out_dir}: {reason}: {number:,.2f} h")
    if not tables["text"]:
        raise ValueError(
            f"{out_dir}: no utterance is left; expected ids that end in {ENGLISH_ASR} "
            f"and durations from {min_duration} to {max_duration} s"
        )
    data = DataDir(Path(out_dir), tables)
    data.validate()
    data.write(out_dir)
    return hours["kept"]
