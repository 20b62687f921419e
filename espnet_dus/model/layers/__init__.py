"""The added layers: one builder for each kind and scope.

    builder(lm, neighbour, layer_idx, *, <options of adaptation_conf>) -> layer

    lm          the Hugging Face causal LM that the layer is for
    neighbour   the base layer that the added one copies: the one below it, or the first
    layer_idx   index of the added layer in the KV cache

A layer takes the call of the base model's own decoder layers and, where it needs it,
`speech` (see `speech_only.Speech`); it returns hidden states (batch, time, hidden). It
is the identity until it is trained.
"""

from espnet_dus.model.layers.e_branchformer import build_e_branchformer
from espnet_dus.model.layers.hybrid import build_hybrid
from espnet_dus.model.layers.transformer import (
    build_bidirectional_transformer,
    build_transformer,
)

BUILDERS = {
    ("transformer", "all"): build_transformer,
    ("transformer", "speech"): build_bidirectional_transformer,
    ("e_branchformer", "all"): build_hybrid,
    ("e_branchformer", "speech"): build_e_branchformer,
}
KINDS = ("transformer", "e_branchformer")
SCOPES = ("all", "speech")
