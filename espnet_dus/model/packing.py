"""Sequence packing: the utterances of a batch in one row, without padding.

    padded    [speech][prompt][text][pad pad]      packed    [s][p][t][s][p][t][s][p][t]
              [speech][prompt][text][pad    ]
              [speech][prompt][text][pad pad]

Every linear layer works on the row. Positions restart with each utterance, and
attention sees one utterance at a time: flash attention takes the bounds of utterances;
PyTorch's attention is given the padded batch, since a mask over a row would cost its
length squared. Added layers gather the speech of each utterance, packed or not. So the
losses are those of the padded batch.

Dimensions: B utterances, T positions of a padded sequence, M real positions of the
batch, R positions of the row, X any further dimensions.
"""

import dataclasses
from typing import Any, Optional, Tuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from espnet_dus.data.lengths import LENGTH_MULTIPLE
from espnet_dus.model.sequence import Joined

PACKED_SDPA = "packed_sdpa"


@dataclasses.dataclass(frozen=True)
class Row:
    """Where the positions of a packed row are in the padded batch.

    Attributes:
        index_M: Indices of the real positions among all (B T), in order.
        lengths_B: Number of real positions of each utterance.
        num_positions: T.
    """

    index_M: torch.Tensor
    lengths_B: torch.Tensor
    num_positions: int

    def pack(self, x_BTX: torch.Tensor) -> torch.Tensor:
        """Return the row (1, R, X), padded with zeros to a multiple for few shapes."""
        x_MX = x_BTX.flatten(0, 1).index_select(0, self.index_M)
        padding = x_MX.new_zeros((-len(x_MX) % LENGTH_MULTIPLE, *x_MX.shape[1:]))
        return torch.cat([x_MX, padding])[None]

    def unpack(self, x_1RX: torch.Tensor) -> torch.Tensor:
        """Return the padded batch (B, T, X)."""
        shape = len(self.lengths_B), self.num_positions
        x_MX = x_1RX[0, : len(self.index_M)]
        padded = x_MX.new_zeros((shape[0] * shape[1], *x_MX.shape[1:]))
        return padded.index_copy(0, self.index_M, x_MX).unflatten(0, shape)

    def places(self, index_N: torch.Tensor) -> torch.Tensor:
        """Return where positions of the padded batch, given as indices, are in it."""
        places_M = torch.arange(len(self.index_M), device=index_N.device)
        places_X = index_N.new_zeros(len(self.lengths_B) * self.num_positions)
        return places_X.index_copy(0, self.index_M, places_M)[index_N]


def pack(seq: Joined) -> Joined:
    """Put the utterances of a right-padded batch into one row, in their order.

    Args:
        seq: A batch of `join`.

    Returns:
        The same with `inputs_BTD` of one row, and with `packing`: the row, and what
        keeps its utterances apart in the LM. The masks are those of the padded batch.
    """
    real_BT = seq.attention_mask_BT
    index_M = real_BT.flatten().nonzero().squeeze(1)  # waits for the GPU
    row = Row(index_M, seq.lengths_B, real_BT.size(1))
    inputs_1RD = row.pack(seq.inputs_BTD)
    positions_BT = torch.arange(real_BT.size(1), device=index_M.device).expand_as(
        real_BT
    )
    ends_B = seq.lengths_B.cumsum(0)
    last = ends_B.new_tensor([inputs_1RD.size(1)])  # end of the row's padding
    bounds = torch.cat([torch.zeros_like(last), ends_B, last]).int()
    packing = dict(
        row=row,
        position_ids=row.pack(positions_BT),
        # all ones: no mask, nor a search for positions that restart
        attention_mask=real_BT.new_ones(inputs_1RD.shape[:2]),
        # as Transformers names what flash attention takes
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=row.num_positions,
        max_length_k=row.num_positions,
    )
    return seq._replace(inputs_BTD=inputs_1RD, packing=packing)


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    row: Optional[Row] = None,
    **kwargs: Any,
) -> Tuple[torch.Tensor, None]:
    """Attend as Transformers' `sdpa` does; in a packed row, within each utterance.

    Args:
        module: The attention module.
        query: (1, heads, R, head size); without a row (B, heads, T, head size).
        key: As `query`, with its own number of heads.
        value: As `key`.
        attention_mask: Without a row: as `sdpa` takes it.
        row: The packed row, or None.
        kwargs: For Transformers' function.

    Returns:
        The output (1, R, heads, head size), and None for the weights.
    """
    if row is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
    padded = [
        row.unpack(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value)
    ]
    # causal, so that nothing real sees the padding on the right
    output, _ = sdpa_attention_forward(module, *padded, None, **kwargs)
    return row.pack(output), None


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)


def use_packed_attention(lm: torch.nn.Module) -> None:
    """Prepare an LM for packed rows; what it computes of other input does not change.

    Raises:
        ValueError: Its attention would not keep utterances apart.
    """
    implementation = lm.config._attn_implementation
    window = getattr(lm.config, "sliding_window", None)
    if window is not None:
        raise ValueError(
            f"packing: {type(lm).__name__} attends to a window of {window} positions, "
            "but packed rows need full attention; set model_conf packing: false"
        )
    if implementation == "sdpa":
        lm.set_attn_implementation(PACKED_SDPA)
    elif not implementation.startswith("flash_attention"):
        raise ValueError(
            f"packing: attn_implementation {implementation!r} (base_lm_conf) would "
            "attend across utterances; use sdpa or flash_attention_2, or set "
            "model_conf packing: false"
        )
