#!/usr/bin/env python3
"""Compare arms: one table, and one picture of WER against text degradation."""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Get the argument parser of `dus_compare`."""
    parser = argparse.ArgumentParser(
        description="Collect the results of several arms of one base LM in "
        "OUT_DIR/comparison.{md,json,png}, and print the table.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--exp_dir",
        nargs="+",
        required=True,
        metavar="DIR",
        help="experiment directories, scored (stage 13)",
    )
    parser.add_argument("--test_set", default="test", help="the set whose WER counts")
    parser.add_argument(
        "--inference_tag",
        help="the decoding that counts, where an experiment has several",
    )
    parser.add_argument("--out_dir", required=True, help="where the comparison goes")
    return parser


@user_errors
def main(cmd=None):
    """Run `dus_compare`."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.evaluation.comparison import compare

    print(compare(args.exp_dir, args.test_set, args.out_dir, args.inference_tag))


if __name__ == "__main__":
    main()
