#!/usr/bin/env python3
"""Export a trained model as a Hugging Face directory."""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--asr_train_config", required=True, help="config.yaml")
    parser.add_argument("--asr_model_file", required=True, help="a checkpoint")
    parser.add_argument("--out_dir", required=True, help="the directory, to be made")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16"],
        help="precision of the weights",
    )
    return parser


@user_errors
def main(cmd=None):
    """Run the command."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.zoo.export import export

    export(args.asr_train_config, args.asr_model_file, args.out_dir, args.dtype)


if __name__ == "__main__":
    main()
