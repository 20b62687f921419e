#!/usr/bin/env python3
"""ESPnet3 with the task of espnet_dus; see README.md beside this file."""

from espnet3.systems.base.system import BaseSystem
from espnet3.systems.launch import launch

if __name__ == "__main__":
    launch(BaseSystem, conf_package="egs3.TEMPLATE.esp2_asr")
