"""Blocks of work in several processes."""

import subprocess
import sys

SCRIPT = """
import time
from espnet_dus.data.parallel import run_blocks

def work(seconds):
    time.sleep(seconds)
    return seconds

for seconds in run_blocks(work, [0, 30, 30, 30], 2):
    print("begun", flush=True)
"""


def test_when_the_main_process_is_killed_the_others_end():
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.kill()
        # the others hold the pipe open as long as they live
        process.communicate(timeout=15)
