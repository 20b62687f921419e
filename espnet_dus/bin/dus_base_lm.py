#!/usr/bin/env python3
"""Fetch a base LM (stage 6); `espnet-dus base_lm`, called by name."""

from espnet_dus.bin import main_of
from espnet_dus.bin.zoo import add_commands

main = main_of("base_lm", add_commands)

if __name__ == "__main__":
    main()
