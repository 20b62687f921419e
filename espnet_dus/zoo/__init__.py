"""Trained models as files: packed, published, fetched again.

Nothing here loads torch, so that listing models is quick.
"""

from typing import Any, Dict, Tuple

FETCHED = "fetched.json"  # of a fetched model: the `model` asked for, its `base_lm`
BASE_LM = "data/base_lm"
# Options of a training that name files -> their places in a pack. Each has a "/":
# without one, ESPnet's model zoo takes a value for a word, not a path.
PATHS = {
    "base_lm": BASE_LM,
    "ctc_units": "data/ctc_units",
    "speech_tokenizer": "data/speech_tokenizer",
    "normalize_conf.stats_file": "data/feats_stats.npz",
}


def find_option(config: Dict[str, Any], option: str) -> Tuple[Dict[str, Any], str]:
    """Find an option of `PATHS`, which may lie in a block.

    Returns:
        The dict that holds it, empty if its block is missing, and its key there.
    """
    *blocks, key = option.split(".")
    for block in blocks:
        config = config.get(block) or {}
    return config, key
