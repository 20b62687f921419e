#!/usr/bin/env python3
"""Stage 2: make a data directory with every utterance at several speeds."""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Build the command's argument parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", required=True, help="Kaldi data directory")
    parser.add_argument(
        "--factors",
        nargs="+",
        required=True,
        help="Speed factors; 1.0 keeps the original",
    )
    parser.add_argument("--out_dir", required=True, help="Data directory to write")
    return parser


@user_errors
def main(cmd=None):
    """Parse the command line and perturb."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.data.perturb import perturb_speed

    perturb_speed(**vars(args))


if __name__ == "__main__":
    main()
