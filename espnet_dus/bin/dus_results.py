#!/usr/bin/env python3
"""Write RESULTS.md of an experiment, and print it."""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Get the argument parser of `dus_results`."""
    parser = argparse.ArgumentParser(
        description="Collect WER, CER and text results of an experiment in "
        "EXP_DIR/RESULTS.md, in ESPnet's format."
    )
    parser.add_argument("--exp_dir", required=True, help="experiment directory")
    return parser


@user_errors
def main(cmd=None):
    """Run `dus_results`."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.evaluation.report import write_results

    print(write_results(args.exp_dir))


if __name__ == "__main__":
    main()
