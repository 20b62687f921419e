"""What `import espnet_dus` gives."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("names", ["upscale, Speech2Text", "Speech2Text, upscale"])
def test_public_names_are_there_in_any_order_of_import(names):
    # in a process of its own: here, other tests have imported the modules behind them
    code = f"from espnet_dus import {names}; assert callable(upscale), upscale"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_name_is_an_attribute_error():
    import espnet_dus

    with pytest.raises(AttributeError, match="no attribute 'downscale'"):
        espnet_dus.downscale


@pytest.mark.parametrize("writable", ["environment", "home", None])
def test_numba_has_a_cache_where_environment_and_home_are_read_only(writable):
    code = (
        "import os, sys\n"
        f"home, writable = os.path.expanduser('~'), {writable!r}\n"
        "os.access = lambda path, _: writable == ('home' if path == home else "
        "'environment')\n"
        "import espnet_dus\n"
        "place = os.environ.get('NUMBA_CACHE_DIR')\n"
        "print(place, place and os.stat(place).st_mode & 0o777)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    place, mode = done.stdout.split()
    if writable:
        assert place == "None"
    else:
        assert int(mode) == 0o700 and not os.path.exists(place), done.stderr
