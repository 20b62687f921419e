#!/usr/bin/env python3
"""Stage 3: dump a data directory's audio, or its features, in one format."""

import argparse

from espnet2.utils.types import str2bool

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Build the command's argument parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", required=True, help="Kaldi data directory")
    parser.add_argument("--out_dir", required=True, help="Directory to write")
    parser.add_argument(
        "--feats_type",
        choices=["raw", "fbank"],
        default="raw",
        help="raw: audio files; fbank: the frontend's log-mel features as Kaldi ark",
    )
    parser.add_argument("--fs", default="16k", help="Sampling rate, 16k or 16000")
    parser.add_argument(
        "--audio_format",
        choices=["flac", "wav"],
        default="flac",
        help="Format of the audio files (feats_type raw)",
    )
    parser.add_argument("--nj", type=int, default=1, help="Number of processes")
    parser.add_argument(
        "--max_bad_utterances",
        type=int,
        default=0,
        help="Leave out up to this many utterances whose audio cannot be used",
    )
    parser.add_argument(
        "--allow_pipes",
        type=str2bool,
        default=False,
        help="Run the commands that stand in wav.scp ('... |'). They can do whatever "
        "you can: only for data that you trust",
    )
    return parser


@user_errors
def main(cmd=None):
    """Parse the command line and dump."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.data.audio import parse_fs
    from espnet_dus.data.format import format_data

    format_data(**{**vars(args), "fs": parse_fs(args.fs)})


if __name__ == "__main__":
    main()
