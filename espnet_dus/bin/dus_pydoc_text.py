#!/usr/bin/env python3
"""Write a part of Python's own documentation as a text for perplexity."""

import argparse
import logging

from espnet_dus.bin import user_errors


def get_parser():
    """Build the parser of this command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="The text file to write")
    return parser


@user_errors
def main(cmd=None):
    """Write the text."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.data.corpora.pydoc_text import write_pydoc_text

    logging.info("%s: %d words", args.out, write_pydoc_text(args.out))


if __name__ == "__main__":
    main()
