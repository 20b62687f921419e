#!/usr/bin/env python3
"""Upload a packed model to the Hugging Face hub, with a model card (stage 15)."""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pack", required=True, help="made by stage 14")
    parser.add_argument("--repo", required=True, help="user/name")
    parser.add_argument("--dataset", required=True, help="name of the training data")
    parser.add_argument("--lang", default="noinfo", help="language of the speech")
    parser.add_argument(
        "--license", default="cc-by-4.0", help="licence of the trained parameters"
    )
    parser.add_argument(
        "--base_model", help="the base LM's hub id; default: its name, if it is one"
    )
    parser.add_argument(
        "--dry_run",
        default="false",
        choices=["true", "false"],
        help="only say what would be sent",
    )
    return parser


@user_errors
def main(cmd=None):
    """Run the command."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.zoo.upload import upload

    upload(
        args.pack,
        args.repo,
        args.dataset,
        args.lang,
        args.license,
        args.base_model,
        args.dry_run == "true",
    )


if __name__ == "__main__":
    main()
