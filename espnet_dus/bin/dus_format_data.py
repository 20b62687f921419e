#!/usr/bin/env python3
"""Dump audio or features (stage 3); `espnet-dus format_data`, called by name."""

from espnet_dus.bin import main_of
from espnet_dus.bin.data import add_commands

main = main_of("format_data", add_commands)

if __name__ == "__main__":
    main()
