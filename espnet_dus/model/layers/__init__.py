"""The kinds of inserted layers, one file each, and what both share."""

from espnet_dus.model.layers.e_branchformer import build_e_branchformer
from espnet_dus.model.layers.transformer import build_transformer

# kind -> builder(lm, neighbour, layer_idx, scope, **layer_conf) -> the inserted layer
KINDS = {"transformer": build_transformer, "e_branchformer": build_e_branchformer}
SCOPES = ("all", "speech")

__all__ = ["KINDS", "SCOPES"]
