"""Blocks of work in several processes."""

import subprocess
import sys
import time

import pytest

from espnet_dus.data.parallel import run_blocks

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


@pytest.fixture
def fail_or_write():
    """Work that fails at once without a path, or writes a file after a second."""

    def work(path):  # of no module, so the processes need not import this one
        if path is None:
            raise ValueError("nothing to write")
        time.sleep(1)
        path.write_text("whole")

    return work


def test_blocks_in_work_are_finished_before_an_error(fail_or_write, tmp_path):
    with pytest.raises(ValueError, match="nothing to write"):
        list(run_blocks(fail_or_write, [None, tmp_path / "a"], 2))
    assert (tmp_path / "a").read_text() == "whole"


def test_blocks_in_work_are_finished_when_no_more_results_are_wanted(
    fail_or_write, tmp_path
):
    results = run_blocks(fail_or_write, [tmp_path / "a", tmp_path / "b"], 2)
    next(results)
    results.close()
    assert (tmp_path / "b").read_text() == "whole"
