"""Kind `e_branchformer`, scope `speech`: ESPnet's E-Branchformer layer, whole.

    x -> + 1/2 FFN -> + merge(attention, cgMLP) -> + 1/2 FFN

The layer and its parts are ESPnet's (Kim et al., "E-Branchformer", SLT 2022). Only what
a frozen LLM requires is changed:

    norm_final                      Identity: the output is the residual stream
    merge_proj, feed_forward*.w_2   zero: the layer starts as the identity, and the
                                    gradient is not zero (a zeroed norm's would be)

Dimensions: B utterances, S speech frames, D hidden.
"""

from typing import Optional

import torch
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoderLayer
from espnet2.asr.layers.cgmlp import ConvolutionalGatingMLP
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    MultiHeadedAttention,
    RelPositionMultiHeadedAttention,
)
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import (
    RelPositionalEncoding,
)
from espnet2.legacy.nets.pytorch_backend.transformer.positionwise_feed_forward import (
    PositionwiseFeedForward,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from espnet_dus.model.layers.speech_only import SpeechOnlyLayer
from espnet_dus.model.layers.transformer import zero

ATTENTIONS = {
    "rel_selfattn": RelPositionMultiHeadedAttention,
    "selfattn": MultiHeadedAttention,
}


def build_e_branchformer(
    lm: torch.nn.Module,
    neighbour: torch.nn.Module,
    layer_idx: int,
    *,
    attention_heads: Optional[int] = None,
    attention_layer_type: str = "rel_selfattn",
    linear_units: Optional[int] = None,
    cgmlp_linear_units: Optional[int] = None,
    cgmlp_conv_kernel: int = 31,
    merge_conv_kernel: int = 3,
    dropout_rate: float = 0.1,
) -> torch.nn.Module:
    """Build ESPnet's layer; it is the identity until it is trained.

    The first arguments are those of every builder, see `espnet_dus.model.layers`;
    nothing of `neighbour` is copied. The options have the names and meanings of
    ESPnet's `EBranchformerEncoder`.

    Args:
        attention_heads: Number of heads; None: the base LM's.
        attention_layer_type: `rel_selfattn` (relative positions) or `selfattn`.
        linear_units: Width of the feed-forward networks; None: twice the hidden size.
        cgmlp_linear_units: Width of the cgMLP; None: the hidden size.
        cgmlp_conv_kernel: Kernel of the cgMLP's convolution, in frames.
        merge_conv_kernel: Kernel of the convolution before the merge, in frames.
        dropout_rate: Dropout in all parts but the attention weights.

    Raises:
        ValueError: An option has a value that does not fit.
    """
    size = lm.config.hidden_size
    heads = attention_heads or lm.config.num_attention_heads
    if attention_layer_type not in ATTENTIONS:
        raise ValueError(
            f"attention_layer_type: {attention_layer_type!r} is not one of "
            f"{', '.join(ATTENTIONS)}"
        )
    if heads < 1 or size % heads:
        raise ValueError(
            f"attention_heads: {heads} does not divide the hidden size {size}"
        )
    linear_units = 2 * size if linear_units is None else linear_units
    _check_units("linear_units", linear_units)
    check_kernel("merge_conv_kernel", merge_conv_kernel)
    attention = ATTENTIONS[attention_layer_type](heads, size, dropout_rate=0.0)
    cgmlp = build_cgmlp(size, cgmlp_linear_units, cgmlp_conv_kernel, dropout_rate)

    def feed_forward():
        return PositionwiseFeedForward(
            size, linear_units, dropout_rate, torch.nn.SiLU()
        )

    layer = EBranchformerEncoderLayer(
        size,
        attention,
        cgmlp,
        feed_forward(),
        feed_forward(),
        dropout_rate,
        merge_conv_kernel,
    )
    layer.norm_final = torch.nn.Identity()
    zero(layer.merge_proj, layer.feed_forward.w_2, layer.feed_forward_macaron.w_2)
    return SpeechOnlyLayer(BidirectionalEBranchformer(layer))


def build_cgmlp(
    size: int, linear_units: Optional[int], conv_kernel: int, dropout_rate: float
) -> ConvolutionalGatingMLP:
    """Build ESPnet's convolutional gating MLP with a gate of one.

    Args:
        size: Hidden size.
        linear_units: Width; None: the hidden size.
        conv_kernel: Kernel of its convolution, in frames.
        dropout_rate: Dropout after the gate.

    Raises:
        ValueError: A value does not fit.
    """
    linear_units = size if linear_units is None else linear_units
    _check_units("cgmlp_linear_units", linear_units)
    check_kernel("cgmlp_conv_kernel", conv_kernel)
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate: {dropout_rate} is not in [0, 1)")
    cgmlp = ConvolutionalGatingMLP(
        size,
        linear_units,
        conv_kernel,
        dropout_rate,
        use_linear_after_conv=False,
        gate_activation="identity",
    )
    cgmlp.csgu.espnet_initialization_fn()
    return cgmlp


def check_kernel(name: str, kernel: int) -> None:
    """Check the kernel of a centred convolution.

    Raises:
        ValueError: It is not an odd number of 1 or more.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"{name}: {kernel} is not an odd number of 1 or more")


def _check_units(name: str, units: int) -> None:
    if units < 2 or units % 2:
        raise ValueError(f"{name}: {units} is not an even number of 2 or more")


class BidirectionalEBranchformer(GradientCheckpointingLayer):
    """ESPnet's layer as it is, on the frames of whole utterances."""

    def __init__(self, layer: EBranchformerEncoderLayer):
        super().__init__()
        self.layer = layer
        self.pos_enc = None
        if isinstance(layer.attn, RelPositionMultiHeadedAttention):
            # its table grows with the longest utterance; ESPnet's 5,000 positions
            # would be 82 MB in each layer of a 1.7B model
            self.pos_enc = RelPositionalEncoding(layer.size, 0.0, max_len=512)

    def forward(self, x_BSD: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """Transform speech frames (B, S, D) under a padding mask bool (B, S)."""
        if self.pos_enc is None:
            return self.layer(x_BSD, mask_BS[:, None])[0]
        # the encoding also scales its input: only its positions are wanted
        pos_emb = self.pos_enc(x_BSD)[1]
        return self.layer((x_BSD, pos_emb), mask_BS[:, None])[0][0]
