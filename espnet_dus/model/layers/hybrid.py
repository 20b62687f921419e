"""Kind `e_branchformer`, scope `all`: the paper's hybrid of a base layer and cgMLP.

    speech   x -> + merge(attention, cgMLP) -> + FFN
    text     x -> + attention               -> + FFN

ESPnet's E-Branchformer layer (Kim et al., "E-Branchformer", SLT 2022) with copies of
the base layer's attention (causal, rotary, cached), feed-forward network and norms in
its slots, as in Yano et al., "Adapting Text LLMs to Speech via Multimodal Depth
Up-Scaling", section 3.3. The convolutions run over the speech of one utterance,
gathered without gap or padding. They look in both directions, since the speech
holds no transcript, and need no cache: all speech is in the prefill.

Dimensions: B utterances, T positions of the LLM sequence, S speech positions, D hidden.
"""

import copy
from typing import Optional

import torch
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoderLayer
from espnet2.asr.layers.cgmlp import ConvolutionalGatingMLP
from espnet2.legacy.nets.pytorch_backend.conformer.convolution import (
    mask_padded_frames,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from espnet_dus.model.layers.e_branchformer import build_cgmlp, check_kernel
from espnet_dus.model.layers.speech_only import Speech
from espnet_dus.model.layers.transformer import build_transformer, zero

# The message for a checkpoint or configuration of the former layer of this kind.
FORMER_LAYER = (
    "kind e_branchformer in scope all was a causal E-Branchformer in earlier versions; "
    "it is now the hybrid layer, and such a model must be trained again"
)
MERGE_INITS = ("function_preserving", "random")


def build_hybrid(
    lm: torch.nn.Module,
    neighbour: torch.nn.Module,
    layer_idx: int,
    *,
    cgmlp_linear_units: Optional[int] = None,
    cgmlp_conv_kernel: int = 31,
    merge_conv_kernel: int = 3,
    merge_init: str = "function_preserving",
    dropout_rate: float = 0.0,
) -> torch.nn.Module:
    """Build the hybrid layer; it is the identity until it is trained.

    The first arguments are those of every builder, see `espnet_dus.model.layers`.

    Args:
        cgmlp_linear_units: Width of the cgMLP; None: the hidden size.
        cgmlp_conv_kernel: Kernel of the cgMLP's convolution, in frames.
        merge_conv_kernel: Kernel of the convolution before the merge, in frames.
        merge_init: `function_preserving`: the merge starts at [I; 0]. `random`: it
            starts at random (the paper's ablation), so that speech positions are not
            preserved; text positions are.
        dropout_rate: Dropout on the output of each branch, the merge and the
            feed-forward network.

    Raises:
        ValueError: An option has a value that does not fit.
    """
    if merge_init not in MERGE_INITS:
        raise ValueError(
            f"merge_init: {merge_init!r} is not one of {', '.join(MERGE_INITS)}"
        )
    check_kernel("merge_conv_kernel", merge_conv_kernel)
    size = lm.config.hidden_size
    layer = HybridEBranchformerLayer(
        size,
        build_transformer(lm, neighbour, layer_idx),
        build_cgmlp(size, cgmlp_linear_units, cgmlp_conv_kernel, dropout_rate),
        dropout_rate,
        merge_conv_kernel,
    )
    zero(layer.depthwise_conv_fusion)
    if merge_init == "function_preserving":
        torch.nn.init.eye_(layer.merge_proj.weight)  # (D, 2 D): [I, 0]
        torch.nn.init.zeros_(layer.merge_proj.bias)
    return layer


class HybridEBranchformerLayer(GradientCheckpointingLayer, EBranchformerEncoderLayer):
    """ESPnet's layer over a base layer's modules; cgMLP and merge on speech alone.

    ESPnet's forward has no way to pass a cache, rotary positions or a mask for a part
    of the positions, so this one is written over ESPnet's submodules.

    Args:
        size: Hidden size (D).
        base_layer: A Llama-type HF decoder layer. Its modules become this layer's.
        cgmlp: The local branch.
        dropout_rate: Dropout, see `build_hybrid`.
        merge_conv_kernel: Kernel of the convolution before the merge.
    """

    takes_speech = True
    # Modules that see speech positions only.
    SPEECH_MODULES = ("norm_mlp", "cgmlp", "depthwise_conv_fusion", "merge_proj")

    def __init__(
        self,
        size: int,
        base_layer: torch.nn.Module,
        cgmlp: ConvolutionalGatingMLP,
        dropout_rate: float,
        merge_conv_kernel: int,
    ):
        super().__init__(
            size,
            base_layer.self_attn,
            cgmlp,
            base_layer.mlp,
            None,  # no macaron feed-forward
            dropout_rate,
            merge_conv_kernel,
        )
        self.norm_mha = base_layer.input_layernorm
        self.norm_mlp = copy.deepcopy(base_layer.input_layernorm)
        self.norm_ff = base_layer.post_attention_layernorm
        # the output is the residual stream, which the next layer's norms normalize
        self.norm_final = torch.nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        speech: Optional[Speech] = None,
        **kwargs,
    ) -> torch.Tensor:
        """Transform text and speech positions.

        Args:
            hidden_states: (B, T, D).
            attention_mask: The base model's causal mask, of its attention back-end.
            speech: Where the speech is, or None.
            kwargs: For the base layer's attention: positions and cache.

        Returns:
            (B, T, D).
        """
        x_BTD = hidden_states
        global_BTD, _ = self.attn(
            hidden_states=self.norm_mha(x_BTD), attention_mask=attention_mask, **kwargs
        )
        global_BTD = self.dropout(global_BTD)
        if speech is not None:
            # zero on padding: what follows the speech must not reach the convolutions
            merged_BSD = self.merge(
                speech.gather(global_BTD), speech.gather(x_BTD), speech.mask_BS
            )
            global_BTD = speech.scatter(merged_BSD, global_BTD)
        x_BTD = x_BTD + global_BTD
        return x_BTD + self.dropout(self.feed_forward(self.norm_ff(x_BTD)))

    def merge(
        self, global_BSD: torch.Tensor, x_BSD: torch.Tensor, mask_BS: torch.Tensor
    ) -> torch.Tensor:
        """Merge attention and cgMLP over the frames of whole utterances.

        Args:
            global_BSD: (B, S, D) output of the attention.
            x_BSD: (B, S, D) input of the layer.
            mask_BS: bool (B, S), True on real frames.

        Returns:
            (B, S, D).
        """
        mask_B1S = mask_BS[:, None]
        local_BSD = self.dropout(self.cgmlp(self.norm_mlp(x_BSD), mask_B1S))
        both_BSC = torch.cat([global_BSD, local_BSD], dim=-1)
        frames_BCS = mask_padded_frames(both_BSC.transpose(1, 2), mask_B1S)
        convolved_BSC = self.depthwise_conv_fusion(frames_BCS).transpose(1, 2)
        return self.dropout(self.merge_proj(both_BSC + convolved_BSC))
