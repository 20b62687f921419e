#!/usr/bin/env python3
"""Measure tokens of transcripts and bytes of FLAC by second of LibriSpeech's audio.

tools/benchmarks/text_rate.py --librispeech /data/LibriSpeech --base_lm DIR
"""

import argparse
from pathlib import Path

import soundfile
from transformers import AutoTokenizer

from espnet_dus.data.ctc_units import llm_text
from espnet_dus.model.base_lm import LOCAL_DATA


def main(cmd=None):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--librispeech", type=Path, required=True, help="any part of it"
    )
    parser.add_argument("--base_lm", required=True, help="base LM directory")
    options = parser.parse_args(cmd)
    tokenizer = AutoTokenizer.from_pretrained(options.base_lm, **LOCAL_DATA)
    seconds = size = capitals = lower = utterances = 0
    for transcripts in options.librispeech.rglob("*.trans.txt"):
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            utt_id, text = line.split(maxsplit=1)
            audio = transcripts.with_name(f"{utt_id}.flac")
            if not audio.is_file():
                continue  # a subset of the corpus
            utterances += 1
            seconds += soundfile.info(audio).duration
            size += audio.stat().st_size
            capitals += len(tokenizer(llm_text(text)).input_ids)
            lower += len(tokenizer(llm_text(text.lower())).input_ids)
    if not utterances:
        parser.exit(1, f"error: no utterance in {options.librispeech}\n")
    print(
        f"{utterances} utterances, {seconds:.0f} s: tokens a second "
        f"{lower / seconds:.2f} in lower case, {capitals / seconds:.2f} in capitals; "
        f"{size / seconds:,.0f} bytes of FLAC a second"
    )


if __name__ == "__main__":
    main()
