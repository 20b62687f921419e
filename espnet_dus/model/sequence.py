"""The LLM's input: each utterance's text follows its last real speech frame.

    training    [speech][prompt][transcript][pad pad]
    generation  [pad pad][speech][prompt]

Dimensions: B utterances, S speech positions, N text positions, T positions of the
joined sequence, D hidden.
"""

from typing import NamedTuple

import torch


class Sequence(NamedTuple):
    """What the LLM is given.

    Attributes:
        inputs_BTD: Embeddings, zero on padding.
        attention_mask_BT: long, 1 on real positions.
        speech_mask_BT: bool, True on speech.
        lengths_B: Real positions of each sequence.
    """

    inputs_BTD: torch.Tensor
    attention_mask_BT: torch.Tensor
    speech_mask_BT: torch.Tensor
    lengths_B: torch.Tensor


def join(
    speech_BSD: torch.Tensor,
    speech_lengths_B: torch.Tensor,
    text_BND: torch.Tensor,
    text_lengths_B: torch.Tensor,
    pad_side: str,
    multiple: int = 1,
) -> Sequence:
    """Join speech and text embeddings without a gap.

    Args:
        speech_BSD: (B, S, D), padded at the right.
        speech_lengths_B: (B,) at most S.
        text_BND: (B, N, D), padded at the right; N may be 0.
        text_lengths_B: (B,) at most N.
        pad_side: `right` (training) or `left` (generation).
        multiple: Pad the joined length to a multiple of this: shapes that repeat are
            worth it on a CPU, where each new one costs seconds of kernel building.
    """
    device = speech_BSD.device
    lengths_B = speech_lengths_B + text_lengths_B
    num_positions = int(lengths_B.max())
    num_positions += -num_positions % multiple
    place_BT = torch.arange(num_positions, device=device)[None]
    if pad_side == "left":
        place_BT = place_BT - (num_positions - lengths_B)[:, None]
    real_BT = (place_BT >= 0) & (place_BT < lengths_B[:, None])
    speech_BT = real_BT & (place_BT < speech_lengths_B[:, None])
    # where each position comes from in [padded speech][padded text]
    source_BT = torch.where(
        speech_BT,
        place_BT,
        place_BT - speech_lengths_B[:, None] + speech_BSD.size(1),
    ).masked_fill(~real_BT, 0)
    both = torch.cat([speech_BSD, text_BND.to(speech_BSD.dtype)], dim=1)
    inputs_BTD = both.gather(1, source_BT[..., None].expand(-1, -1, both.size(2)))
    return Sequence(
        inputs_BTD.masked_fill(~real_BT[..., None], 0.0),
        real_BT.long(),
        speech_BT,
        lengths_B,
    )
