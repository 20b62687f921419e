"""What `import espnet_dus` gives."""

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
