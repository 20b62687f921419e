#!/usr/bin/env python3
"""Fetch a published model and its base LM, ready to decode with."""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, help="pack (.zip), URL, or user/name[@revision]"
    )
    parser.add_argument(
        "--out_dir", required=True, help="gets config.yaml, model.pth and base_lm"
    )
    parser.add_argument("--base_lm", help="base LM directory, if it is at hand")
    return parser


@user_errors
def main(cmd=None):
    """Run the command."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.zoo.download import download_experiment

    download_experiment(args.model, args.out_dir, args.base_lm)


if __name__ == "__main__":
    main()
