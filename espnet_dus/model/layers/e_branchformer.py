"""Kind `e_branchformer`: ESPnet's E-Branchformer layer as a decoder layer of an LLM.

        x -> (+ 1/2 FFN) -> (+ merge(attention, cgMLP)) -> (+ 1/2 FFN) -> x

The layer and its parts are ESPnet's (Kim et al., "E-Branchformer", SLT 2022). Changed
is what living in a frozen LLM asks for:

    norm_final                          Identity: it stands on the residual stream
    merge_proj, feed_forward*.w_2       zero: the layer starts as the identity, and the
                                        gradient is not zero (a zeroed norm's would be)
    scope `all`: attention, both convolutions    causal, with a cache

Dimensions: B utterances, T new positions, K positions seen so far (new ones included),
C channels, D hidden.
"""

from typing import Optional

import torch
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoderLayer
from espnet2.asr.layers.cgmlp import ConvolutionalGatingMLP
from espnet2.legacy.nets.pytorch_backend.nets_utils import get_activation
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
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from espnet_dus.model.layers.speech_only import SpeechOnlyLayer

# scope -> what `attention_layer_type` may be, the default first
ATTENTION_LAYER_TYPES = {"speech": ("rel_selfattn", "selfattn"), "all": ("selfattn",)}


def build_e_branchformer(
    lm: torch.nn.Module,
    neighbour: torch.nn.Module,
    layer_idx: int,
    scope: str,
    attention_heads: Optional[int] = None,
    attention_layer_type: Optional[str] = None,
    attention_dropout_rate: float = 0.0,
    use_ffn: bool = True,
    macaron_ffn: bool = True,
    linear_units: int = 1024,
    ffn_activation_type: str = "swish",
    cgmlp_linear_units: int = 1024,
    cgmlp_conv_kernel: int = 31,
    use_linear_after_conv: bool = False,
    gate_activation: str = "identity",
    merge_conv_kernel: int = 3,
    dropout_rate: float = 0.1,
    use_sdpa: bool = False,
) -> torch.nn.Module:
    """Build an E-Branchformer layer that is the identity until it is trained.

    The options have the names, and where it has one the meaning, of ESPnet's
    `EBranchformerEncoder`.

    Args:
        lm: The HF causal LM that the layer is for.
        neighbour: Not used: this kind copies nothing.
        layer_idx: The new layer's place in the KV cache.
        scope: `all` (causal, every position) or `speech` (bidirectional, speech only).
        attention_heads: None takes the base LM's number of heads.
        attention_layer_type: `rel_selfattn` (relative positions) or `selfattn`. A
            causal layer takes `selfattn` only; order reaches it through its
            convolutions and the base layers' rotary positions.

    Returns:
        A layer with the call signature of the base model's own.

    Raises:
        ValueError: An option has a value that does not fit, or two contradict.
    """
    size = lm.config.hidden_size
    heads = attention_heads or lm.config.num_attention_heads
    allowed = ATTENTION_LAYER_TYPES[scope]
    attention_layer_type = attention_layer_type or allowed[0]
    if attention_layer_type not in allowed:
        raise ValueError(
            f"attention_layer_type: {attention_layer_type!r} does not go with scope "
            f"{scope!r}, which takes one of {', '.join(allowed)}"
        )
    if heads < 1 or size % heads:
        raise ValueError(
            f"attention_heads: {heads} does not divide the hidden size {size}"
        )
    for name, kernel in (
        ("cgmlp_conv_kernel", cgmlp_conv_kernel),
        ("merge_conv_kernel", merge_conv_kernel),
    ):
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"{name}: {kernel} is not an odd number of 1 or more")
    for name, units in (
        ("linear_units", linear_units),
        ("cgmlp_linear_units", cgmlp_linear_units),
    ):
        if units < 2 or units % 2:
            raise ValueError(f"{name}: {units} is not an even number of 2 or more")
    for name, rate in (
        ("dropout_rate", dropout_rate),
        ("attention_dropout_rate", attention_dropout_rate),
    ):
        if not 0 <= rate < 1:
            raise ValueError(f"{name}: {rate} is not in [0, 1)")

    def feed_forward():
        return PositionwiseFeedForward(
            size, linear_units, dropout_rate, _activation(ffn_activation_type)
        )

    if gate_activation != "identity":
        _activation(gate_activation)
    if scope == "all":
        attention = CausalSelfAttention(
            heads, size, attention_dropout_rate, use_sdpa=use_sdpa
        )
    elif attention_layer_type == "rel_selfattn":
        attention = RelPositionMultiHeadedAttention(
            heads, size, attention_dropout_rate, use_sdpa=use_sdpa
        )
    else:
        attention = MultiHeadedAttention(
            heads, size, attention_dropout_rate, use_sdpa=use_sdpa
        )
    cgmlp = ConvolutionalGatingMLP(
        size,
        cgmlp_linear_units,
        cgmlp_conv_kernel,
        dropout_rate,
        use_linear_after_conv,
        gate_activation,
    )
    cgmlp.csgu.espnet_initialization_fn()  # a gate of one: the convolution comes later
    layer = EBranchformerEncoderLayer(
        size,
        attention,
        cgmlp,
        feed_forward() if use_ffn else None,
        feed_forward() if macaron_ffn else None,
        dropout_rate,
        merge_conv_kernel,
    )
    layer.norm_final = torch.nn.Identity()
    outputs = [layer.merge_proj]
    outputs += [layer.feed_forward.w_2] if use_ffn else []
    outputs += [layer.feed_forward_macaron.w_2] if macaron_ffn else []
    for projection in outputs:
        torch.nn.init.zeros_(projection.weight)
        torch.nn.init.zeros_(projection.bias)
    if scope == "all":
        return CausalEBranchformer(layer, layer_idx)
    return SpeechOnlyLayer(BidirectionalEBranchformer(layer))


def _activation(name: str) -> torch.nn.Module:
    try:
        return get_activation(name)
    except KeyError as error:
        raise ValueError(
            f"ffn_activation_type or gate_activation: {name!r} is not known; ESPnet "
            "has hardtanh, tanh, relu, selu, swish (and identity for the gate)"
        ) from error


class BidirectionalEBranchformer(torch.nn.Module):
    """ESPnet's layer as it is, on the frames of whole utterances."""

    def __init__(self, layer: EBranchformerEncoderLayer):
        super().__init__()
        self.layer = layer
        self.pos_enc = None
        if isinstance(layer.attn, RelPositionMultiHeadedAttention):
            self.pos_enc = RelPositionalEncoding(layer.size, dropout_rate=0.0)

    def forward(self, x_BSD: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """Transform speech frames (B, S, D) under a padding mask bool (B, S)."""
        if self.pos_enc is None:
            return self.layer(x_BSD, mask_BS[:, None])[0]
        # the encoding also scales what it is given: only its positions are wanted
        pos_emb = self.pos_enc(x_BSD)[1]
        return self.layer((x_BSD, pos_emb), mask_BS[:, None])[0][0]


class CausalEBranchformer(GradientCheckpointingLayer):
    """ESPnet's layer with its three parts that look along time made causal."""

    def __init__(self, layer: EBranchformerEncoderLayer, layer_idx: int):
        super().__init__()
        self.layer = layer
        self.layer_idx = layer_idx
        layer.cgmlp.csgu.conv = CausalConv1d.from_centred(layer.cgmlp.csgu.conv, 0)
        layer.depthwise_conv_fusion = CausalConv1d.from_centred(
            layer.depthwise_conv_fusion, 1
        )
        self.along_time = (
            layer.attn,
            layer.cgmlp.csgu.conv,
            layer.depthwise_conv_fusion,
        )
        for module in self.along_time:
            module.layer_idx = layer_idx

    def forward(
        self,
        hidden_states: torch.Tensor,
        padding_mask: Optional[torch.Tensor] = None,
        past_key_values: Optional[Cache] = None,
        **_,
    ) -> torch.Tensor:
        """Transform new positions in the light of those seen.

        Args:
            hidden_states: (B, T, D).
            padding_mask: bool (B, K), False on padding, or None where there is none.
            past_key_values: The cache, grown by this call, or None.

        Returns:
            (B, T, D).
        """
        x_BTD = hidden_states
        num_new = num_seen = x_BTD.size(1)
        if past_key_values is not None:
            num_seen += _cache_layer(past_key_values, self.layer_idx).get_seq_length()
        mask_BTK = torch.ones(
            1, num_new, num_seen, dtype=torch.bool, device=x_BTD.device
        ).tril(num_seen - num_new)
        new_BT = None
        if padding_mask is not None:
            mask_BTK = mask_BTK & padding_mask[:, None, :num_seen].bool()
            new_BT = padding_mask[:, num_seen - num_new : num_seen].bool()
        for module in self.along_time:
            module.past, module.new_BT = past_key_values, new_BT
        return self.layer(x_BTD, mask_BTK)[0]


class CausalSelfAttention(MultiHeadedAttention):
    """ESPnet's attention over the keys and values in the cache and the new ones."""

    past: Optional[Cache] = None
    new_BT: Optional[torch.Tensor] = None
    layer_idx: int

    def forward_qkv(self, query, key, value, expand_kv=False):
        """As ESPnet's; keys and values (B, heads, K, .) go through the cache."""
        q, k, v = super().forward_qkv(query, key, value, expand_kv)
        if self.past is not None:
            k, v = self.past.update(k, v, self.layer_idx)
        return q, k, v


class CausalConv1d(torch.nn.Conv1d):
    """A depthwise convolution that reads its own frame and the ones before it."""

    past: Optional[Cache] = None
    new_BT: Optional[torch.Tensor] = None
    layer_idx: int
    state_idx: int

    @classmethod
    def from_centred(cls, conv: torch.nn.Conv1d, state_idx: int) -> "CausalConv1d":
        """Take over the weights of ESPnet's centred convolution.

        Args:
            conv: The convolution to replace.
            state_idx: Which of the layer's two convolution caches is this one's.
        """
        causal = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, groups=conv.groups
        )
        causal.weight, causal.bias, causal.state_idx = conv.weight, conv.bias, state_idx
        return causal

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C, T) to (B, C, T)."""
        num_new, num_left = x_BCT.size(2), self.kernel_size[0] - 1
        if self.new_BT is not None:
            x_BCT = x_BCT.masked_fill(~self.new_BT[:, None], 0.0)
        if self.past is not None and num_left:
            x_BCT = _cache_layer(self.past, self.layer_idx).update_conv_state(
                x_BCT, self.state_idx, conv_kernel_size=num_left
            )
        # zeros where the sequence (or what the cache holds of it) begins
        x_BCT = torch.nn.functional.pad(x_BCT, (num_left, 0))
        return super().forward(x_BCT[..., -(num_new + num_left) :])


def _cache_layer(past: Cache, layer_idx: int) -> LinearAttentionAndFullAttentionLayer:
    """Give this layer's part of the cache, made to hold two convolution states.

    The cache is built from the base model's config, which knows attention layers only.
    """
    while len(past.layers) <= layer_idx:
        past.layers.append(DynamicLayer())
    if not isinstance(past.layers[layer_idx], LinearAttentionAndFullAttentionLayer):
        past.layers[layer_idx] = LinearAttentionAndFullAttentionLayer(2)
    return past.layers[layer_idx]
