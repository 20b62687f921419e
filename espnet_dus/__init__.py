"""Multimodal Depth Up-Scaling: speech for a frozen text LLM by inserted layers.

Imports are lazy, so that a command line which needs none of it starts at once. No
module may have the name of one of these: importing it would replace them.
"""

import atexit
import importlib.util
import os
import shutil
import tempfile

__version__ = "0.1.0"
__all__ = ["Speech2Text", "drop_added_layers", "upscale"]


def __getattr__(name):
    if name == "Speech2Text":
        from espnet_dus.search.speech2text import Speech2Text

        return Speech2Text
    if name == "drop_added_layers":
        from espnet_dus.model.adaptation import drop_added_layers

        return drop_added_layers
    if name == "upscale":
        from espnet_dus.model.upscaling import upscale

        return upscale
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _find_numba_cache() -> None:
    """Let numba, which librosa loads, keep its cache where it can be written.

    Where neither the environment nor the home directory can be written, numba stops the
    import. A directory of this process's own: what numba reads from its cache is run.
    """
    librosa = importlib.util.find_spec("librosa")
    if librosa is None or "NUMBA_CACHE_DIR" in os.environ:
        return
    places = os.path.dirname(librosa.origin), os.path.expanduser("~")
    if not any(os.access(place, os.W_OK) for place in places):
        os.environ["NUMBA_CACHE_DIR"] = place = tempfile.mkdtemp(prefix="numba-")
        atexit.register(shutil.rmtree, place, ignore_errors=True)


_find_numba_cache()
