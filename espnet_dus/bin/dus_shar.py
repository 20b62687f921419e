#!/usr/bin/env python3
"""Stage 4, --feats_type shar: write the shards that streaming training reads."""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Build the command's argument parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="Audio dump from stage 3")
    parser.add_argument("--out_dir", required=True, help="Directory of shards to write")
    parser.add_argument(
        "--shard_size",
        type=int,
        default=1000,
        help="Utterances in a shard. There must be at least as many shards as GPUs "
        "times data loading processes (num_workers)",
    )
    parser.add_argument("--nj", type=int, default=1, help="Number of processes")
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
    from espnet_dus.data.shards.shar import write_data_dir

    write_data_dir(**vars(args))


if __name__ == "__main__":
    main()
