#!/usr/bin/env python3
"""Write the shards of a public English corpus, without the test sets' utterances."""

import argparse

from espnet_dus.bin import user_errors


def get_parser():
    """Build the parser of this command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="Its name; see the recipe")
    parser.add_argument("--corpus_dir", required=True, help="Where it is")
    parser.add_argument("--out_dir", required=True, help="Directory of shards to write")
    parser.add_argument("--manifest_dir", required=True, help="For lhotse's manifests")
    parser.add_argument(
        "--held_out",
        nargs="+",
        required=True,
        help="Data directories whose speakers and sentences must not be trained on",
    )
    parser.add_argument("--nj", type=int, default=1, help="Number of processes")
    parser.add_argument(
        "--shard_size", type=int, default=1000, help="Utterances in a shard"
    )
    parser.add_argument(
        "--max_bad_utterances",
        type=int,
        default=0,
        help="Leave out up to this many utterances whose audio cannot be read",
    )
    return parser


@user_errors
def main(cmd=None):
    """Parse the command line and write the shards."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.data.corpora.english import prepare_corpus
    from espnet_dus.data.corpora.held_out import HeldOut

    prepare_corpus(
        args.corpus,
        args.corpus_dir,
        args.out_dir,
        args.manifest_dir,
        HeldOut.read(args.held_out),
        nj=args.nj,
        shard_size=args.shard_size,
        max_bad_utterances=args.max_bad_utterances,
    )


if __name__ == "__main__":
    main()
