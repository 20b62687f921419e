"""The result files of stage 12: ESPnet's tables, CTM and subtitles, and the cost."""

import json
import logging
import shutil
from pathlib import Path
from typing import Dict, Sequence

from espnet_dus.io import file_name, write_scp, write_text
from espnet_dus.search.config import SearchConfig
from espnet_dus.search.records import Decoded
from espnet_dus.search.subtitles import srt, write_ctm
from espnet_dus.search.timing import WordTime

FIELDS = ("text", "token", "token_int", "score")


def write_results(
    done: Dict[str, Decoded], out_dir: Path, search: SearchConfig
) -> None:
    """Write the tables and, with word times, CTM and subtitles.

    Args:
        done: The decoded utterances by key.
        out_dir: Directory of the results.
        search: `nbest` and `word_times` are used.
    """
    # Times, or lower ranks, of an earlier run would belong to other transcripts.
    for directory in [*out_dir.glob("*best_recog"), out_dir / "srt"]:
        shutil.rmtree(directory, ignore_errors=True)
    for n in range(search.nbest):
        directory = out_dir / f"{n + 1}best_recog"
        found = {k: one.nbest[n] for k, one in done.items() if n < len(one.nbest)}
        for field in FIELDS:
            table = {}
            for key, hypothesis in found.items():
                value = getattr(hypothesis, field)
                words = value if isinstance(value, list) else str(value).split()
                table[key] = " ".join(map(str, words))
            write_scp(directory / field, table)
        if search.word_times:
            times = {
                key: [WordTime(*time) for time in hypothesis.word_times or []]
                for key, hypothesis in found.items()
            }
            write_ctm(directory / "ctm", times)
            if n == 0:
                for key in times:
                    path = out_dir / "srt" / file_name(key, ".srt")
                    write_text(path, srt(times[key]))


def write_cost(
    done: Sequence[Decoded], out_dir: Path, rate: float, checkpoint: str
) -> None:
    """Write and log what the decoding took, its resumptions included.

    Args:
        done: The decoded utterances.
        out_dir: Directory of `decode.json`.
        rate: Samples or frames of a second of audio.
        checkpoint: Digest of the checkpoint.
    """
    cost = {
        "checkpoint": checkpoint,
        "utterances": len(done),
        "audio_seconds": sum(record.length for record in done) / rate,
        "seconds": sum(record.seconds for record in done),
        "llm_passes": sum(record.nbest[0].llm_passes for record in done),
    }
    write_text(out_dir / "decode.json", json.dumps(cost, indent=2) + "\n")
    logging.info(
        f"decoded {cost['utterances']} utterances: {cost['audio_seconds']:.2f} s of "
        f"audio in {cost['seconds']:.2f} s, {cost['llm_passes'] / len(done):.1f} LLM "
        "passes per utterance"
    )
