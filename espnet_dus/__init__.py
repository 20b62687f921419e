"""Multimodal Depth Up-Scaling: speech for a frozen text LLM by inserted layers.

Imports are lazy, so that a command line which needs none of it starts at once. No
module may have the name of one of these: importing it would take their place.
"""

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
