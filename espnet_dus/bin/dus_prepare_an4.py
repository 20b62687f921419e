#!/usr/bin/env python3
"""Make Kaldi data directories of CMU AN4, complete or mini."""

import argparse

from espnet_dus.bin import user_errors


def get_parser():
    """Build the parser of this command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--corpus",
        required=True,
        help="AN4's directory, a tar file of it, its URL, or 'espnet' for the few "
        "utterances in the espnet package",
    )
    parser.add_argument("--download_dir", default="downloads", help="For archives")
    parser.add_argument("--out_dir", default="data", help="For the data directories")
    parser.add_argument(
        "--num_dev", type=int, required=True, help="Number of validation utterances"
    )
    return parser


@user_errors
def main(cmd=None):
    """Find the corpus and write its data directories."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.data.corpora.an4 import find_corpus, prepare_an4

    root = find_corpus(args.corpus, args.download_dir)
    prepare_an4(root, args.out_dir, args.num_dev)


if __name__ == "__main__":
    main()
