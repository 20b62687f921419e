"""Trained models as files: packed, published, fetched again."""

import os
from pathlib import Path

TAG = "tag"  # in the directory of a fetched model: what it was fetched by


def default_cache() -> Path:
    """Give where fetched models are kept: `~/.cache/espnet_dus`, or in XDG's place."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "espnet_dus"
