#!/usr/bin/env python3
"""Build the adapted model and show that it starts as the base LM (stage 7)."""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Build the command's parser; options it lacks are those of dus_train."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="All other options are those of dus_train.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="training configuration")
    parser.add_argument("--base_lm", required=True, help="base LM directory")
    parser.add_argument("--ctc_units", help="CTC units, made in stage 5")
    parser.add_argument("--text", required=True, help="real text: a plain file")
    parser.add_argument(
        "--speech_scp", required=True, help="its first utterance is used"
    )
    parser.add_argument(
        "--speech_type", default="sound", choices=["sound", "kaldi_ark"]
    )
    parser.add_argument("--out_dir", required=True, help="gets report.md and stack.png")
    parser.add_argument(
        "--every_kind",
        default="true",
        choices=["true", "false"],
        help="check every kind and scope beside the configuration's",
    )
    return parser


@user_errors
def main(cmd=None):
    """Run the command."""
    args, train_args = get_parser().parse_known_args(cmd)
    from pathlib import Path

    from espnet2.train.dataset import ESPnetDataset

    from espnet_dus.evaluation.identity_check import run
    from espnet_dus.task import DUSTask

    options = ["--config", args.config, "--base_lm", args.base_lm]
    options += ["--output_dir", args.out_dir, *train_args]
    if args.ctc_units:
        options += ["--ctc_units", args.ctc_units]
    dataset = ESPnetDataset([(args.speech_scp, "speech", args.speech_type)])
    speech = dataset[0][1]["speech"]
    if speech.ndim == 2:
        options += ["--input_size", str(speech.shape[1])]
    run(
        DUSTask.get_parser().parse_args(options),
        Path(args.text).read_text(encoding="utf-8"),
        speech,
        Path(args.out_dir),
        args.every_kind == "true",
    )


if __name__ == "__main__":
    main()
