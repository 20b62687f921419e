#!/usr/bin/env python3
"""Make Kaldi data directories of LibriSpeech."""

import argparse

from espnet_dus.bin import user_errors


def get_parser():
    """Build the parser of this command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--corpus",
        default="",
        help="LibriSpeech's directory, with train-clean-100 and the like; not given: "
        "it is downloaded (60 GB)",
    )
    parser.add_argument("--download_dir", default="downloads", help="For archives")
    parser.add_argument("--out_dir", default="data", help="For the data directories")
    parser.add_argument(
        "--sets",
        nargs="+",
        help="Data directories to make; not given: all (train_960, dev, dev_clean, "
        "dev_other, test_clean, test_other)",
    )
    return parser


@user_errors
def main(cmd=None):
    """Find the corpus and write its data directories."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.data.corpora.librispeech import (
        SETS,
        find_librispeech,
        prepare_librispeech,
    )

    names = args.sets or list(SETS)
    if unknown := [name for name in names if name not in SETS]:
        raise ValueError(f"--sets {' '.join(unknown)}: not among {', '.join(SETS)}")
    sets = {name: SETS[name] for name in names}
    parts = sorted({part for of_set in sets.values() for part in of_set})
    root = find_librispeech(args.corpus, parts, args.download_dir)
    prepare_librispeech(root, args.out_dir, sets)


if __name__ == "__main__":
    main()
