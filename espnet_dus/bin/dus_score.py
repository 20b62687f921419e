#!/usr/bin/env python3
"""Score decoded text: WER and CER in ESPnet's layout."""

import argparse
import logging

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Get the argument parser of `dus_score`."""
    parser = argparse.ArgumentParser(
        description="Write score_{wer,cer}/{ref.trn,hyp.trn,result.txt} below HYP_DIR.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--ref",
        required=True,
        help="`text` of the decoded data directory, with `utt2spk` beside it",
    )
    parser.add_argument(
        "--hyp_dir", required=True, help="decoding directory with the file `text`"
    )
    return parser


@user_errors
def main(cmd=None):
    """Run `dus_score`."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.evaluation.scoring import read_result, score_dir

    for score, path in score_dir(args.ref, args.hyp_dir).items():
        result = read_result(path)
        logging.info(
            f"{score.upper()} {result['Err']} (95 % interval {result['low']} to "
            f"{result['high']}) on {result['Snt']:.0f} utterances: {path}"
        )


if __name__ == "__main__":
    main()
