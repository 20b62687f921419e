#!/usr/bin/env python3
"""Stage 4: leave out utterances by duration, and those without a transcript."""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Build the command's argument parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--in_dir", required=True, help="Directory from stage 3")
    parser.add_argument("--out_dir", required=True, help="Directory to write")
    parser.add_argument(
        "--min_wav_duration",
        type=float,
        default=0.1,
        help="Seconds; an utterance must be longer",
    )
    parser.add_argument(
        "--max_wav_duration",
        type=float,
        default=20.0,
        help="Seconds; an utterance must be shorter",
    )
    return parser


@user_errors
def main(cmd=None):
    """Parse the command line and filter."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.data.filter import filter_data

    filter_data(**vars(args))


if __name__ == "__main__":
    main()
