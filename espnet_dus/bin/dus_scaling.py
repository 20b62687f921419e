#!/usr/bin/env python3
"""Derive what a long training takes: the tables of doc/scaling.md."""

import argparse
from pathlib import Path

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--config_dir",
        type=Path,
        default=Path("egs2/TEMPLATE/dus1/conf/tuning/paper"),
        help="holds a train_dus_<size>_<arm>.yaml for each arm",
    )
    add("--hours", type=float, default=48000, help="of audio in an epoch")
    add("--mean_seconds", type=float, default=12.0, help="mean length of an utterance")
    add(
        "--tokens_per_second",
        type=float,
        default=2.87,
        help="of transcripts, by second of audio; LibriSpeech in lower case",
    )
    add("--prompt_tokens", type=int, default=3, help="tokens of the prompt")
    add("--num_ctc_units", type=int, default=500, help="blank included")
    add("--peak_tflops", type=float, default=989.0, help="of a GPU, dense bfloat16")
    add("--mfu", type=float, default=0.35, help="share of the peak that is reached")
    add("--gpus", type=int, nargs="+", default=[8, 64], help="numbers of GPUs")
    add(
        "--bytes_per_second",
        type=float,
        default=18300.0,
        help="of stored audio; LibriSpeech's FLAC",
    )
    return parser


@user_errors
def main(cmd=None):
    """Run the command.

    Examples:
        % python -m espnet_dus.bin.dus_scaling --gpus 8 64 --mfu 0.35
    """
    options = vars(get_parser().parse_args(cmd))
    from espnet_dus.scaling import Plan, load_arms, tables

    config_dir = options.pop("config_dir")
    plan = Plan(**options)
    arms = list(load_arms(config_dir, plan.num_ctc_units))
    for title, table in tables(arms, plan):
        print(f"### {title}\n\n{table}\n")


if __name__ == "__main__":
    main()
