"""Kind `transformer`: a copy of a base layer that starts as the identity.

`o_proj` and `down_proj` are zeroed, as in LLaMA-Pro (Wu et al., arXiv 2401.02415): both
residual branches then add nothing, while their gradients are not zero. With scope `all`
the result is an ordinary decoder layer, and the whole an ordinary model of its type.

Dimensions: B utterances, S speech frames, D hidden.
"""

import copy

import torch
from transformers.masking_utils import create_bidirectional_mask

from espnet_dus.model.layers.speech_only import SpeechOnlyLayer


def build_transformer(
    lm: torch.nn.Module, neighbour: torch.nn.Module, layer_idx: int
) -> torch.nn.Module:
    """Copy a base layer, with zeroed output projections (scope `all`).

    The arguments are those of every builder, see `espnet_dus.model.layers`.
    """
    # the config is shared, so that a change of attention back-end reaches the copy
    layer = copy.deepcopy(neighbour, {id(lm.config): lm.config})
    zero(layer.self_attn.o_proj, layer.mlp.down_proj)
    layer.self_attn.layer_idx = layer_idx
    return layer


def zero(*modules: torch.nn.Module) -> None:
    """Set the parameters of modules to zero."""
    for parameter in torch.nn.ModuleList(modules).parameters():
        torch.nn.init.zeros_(parameter)


def build_bidirectional_transformer(
    lm: torch.nn.Module, neighbour: torch.nn.Module, layer_idx: int
) -> torch.nn.Module:
    """Copy a base layer to attend in both directions to speech alone (scope `speech`).

    The arguments are those of every builder, see `espnet_dus.model.layers`.
    """
    layer = build_transformer(lm, neighbour, layer_idx)
    return SpeechOnlyLayer(BidirectionalTransformer(layer, lm))


class BidirectionalTransformer(torch.nn.Module):
    """A decoder layer that reads a whole utterance: no causal mask, no cache.

    Args:
        layer: An HF decoder layer with rotary attention.
        lm: The HF causal LM it was copied from.
    """

    def __init__(self, layer: torch.nn.Module, lm: torch.nn.Module):
        super().__init__()
        layer.self_attn.is_causal = False
        self.layer = layer
        self.config = lm.config
        # in a tuple, since a module would be registered as ours and saved with us
        self.rotary_emb = (lm.model.rotary_emb,)

    def forward(self, x_BSD: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """Transform the speech frames.

        Args:
            x_BSD: (B, S, D) frames, padded at the right.
            mask_BS: bool (B, S), True on real frames.

        Returns:
            (B, S, D).
        """
        positions_1S = torch.arange(x_BSD.size(1), device=x_BSD.device)[None]
        return self.layer(
            x_BSD,
            attention_mask=create_bidirectional_mask(self.config, x_BSD, mask_BS),
            position_ids=positions_1S,
            position_embeddings=self.rotary_emb[0](x_BSD, positions_1S),
        )
