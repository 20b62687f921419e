#!/usr/bin/env python3
"""Start the demo for the browser: the same as `espnet-dus demo`."""

import sys

from espnet_dus.app import cli


def main(cmd=None):
    """Run the command."""
    cli.main(["demo", *(sys.argv[1:] if cmd is None else cmd)])


if __name__ == "__main__":
    main()
