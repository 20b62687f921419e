"""The LM's input: text and speech of an utterance joined without a gap.

    training    [text before][speech][prompt][transcript][pad pad]
    generation  [pad pad][text before][speech][prompt]

Text before the speech is optional: instructions and examples.

Dimensions: B utterances, S speech positions, N text positions, T positions of the
joined sequence, D hidden.
"""

from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch

# Embeddings (B, N, D), padded on the right, and their lengths (B,)
Part = Tuple[torch.Tensor, torch.Tensor]


class Joined(NamedTuple):
    """What the LM is given.

    Attributes:
        inputs_BTD: Embeddings, zero on padding.
        attention_mask_BT: long, 1 on real positions.
        speech_mask_BT: bool, True on speech.
        lengths_B: Number of real positions of each sequence.
        before_B: Number of positions before the speech, or None without any.
        packing: Of a packed row (see `packing.pack`): further arguments of the LM.
    """

    inputs_BTD: torch.Tensor
    attention_mask_BT: torch.Tensor
    speech_mask_BT: torch.Tensor
    lengths_B: torch.Tensor
    before_B: Optional[torch.Tensor] = None
    packing: Optional[Dict[str, Any]] = None

    @property
    def starts_B(self) -> torch.Tensor:
        """Where each utterance of a right-padded or packed batch starts in (B T)."""
        if self.packing is not None:
            return self.lengths_B.cumsum(0) - self.lengths_B
        rows_B = torch.arange(len(self.lengths_B), device=self.lengths_B.device)
        return rows_B * self.inputs_BTD.size(1)

    def of_speech(self, x_BTD: torch.Tensor, num_positions: int) -> torch.Tensor:
        """Return what a right-padded or packed batch has on its speech positions.

        Args:
            x_BTD: (B, T, D), such as hidden states.
            num_positions: S, that of the longest utterance.

        Returns:
            (B, S, D); what follows shorter speech is not to be used.
        """
        if self.before_B is None and self.packing is None:
            return x_BTD[:, :num_positions]
        first_B = self.starts_B + (0 if self.before_B is None else self.before_B)
        positions_S = torch.arange(num_positions, device=x_BTD.device)
        x_XD = x_BTD.flatten(0, 1)
        index_BS = (first_B[:, None] + positions_S).clamp(max=len(x_XD) - 1)
        return x_XD.index_select(0, index_BS.flatten()).unflatten(0, index_BS.shape)


def join(
    speech_BSD: torch.Tensor,
    speech_lengths_B: torch.Tensor,
    text_BND: torch.Tensor,
    text_lengths_B: torch.Tensor,
    pad_side: str,
    multiple: int = 1,
    before: Optional[Part] = None,
) -> Joined:
    """Join speech and text embeddings without a gap.

    Args:
        speech_BSD: (B, S, D), padded on the right.
        speech_lengths_B: (B,) at most S.
        text_BND: (B, N, D), padded on the right; N may be 0.
        text_lengths_B: (B,) at most N.
        pad_side: `right` (training) or `left` (generation).
        multiple: The joined length is padded to a multiple of this. Each new shape
            costs seconds of kernel building on a CPU, so shapes that repeat are faster.
        before: Text before the speech, as its embeddings and lengths.
    """
    device, dtype = speech_BSD.device, speech_BSD.dtype
    parts = [(speech_BSD, speech_lengths_B), (text_BND, text_lengths_B)]
    if before is not None:
        parts.insert(0, before)
    lengths_B = sum(lengths for _, lengths in parts)
    num_positions = int(lengths_B.max())
    num_positions += -num_positions % multiple
    # index in the sequence, negative on padding at the left
    index_BT = torch.arange(num_positions, device=device)[None]
    if pad_side == "left":
        index_BT = index_BT - (num_positions - lengths_B)[:, None]
    real_BT = (index_BT >= 0) & (index_BT < lengths_B[:, None])
    # where each position comes from in the padded parts, one after the other
    source_BT = index_BT.expand(len(lengths_B), -1)
    start_B, offset = torch.zeros_like(lengths_B), 0
    for x_BND, part_lengths_B in parts:
        from_part_BT = index_BT - start_B[:, None]
        source_BT = torch.where(from_part_BT >= 0, from_part_BT + offset, source_BT)
        start_B, offset = start_B + part_lengths_B, offset + x_BND.size(1)
    source_BT = source_BT.masked_fill(~real_BT, 0)
    all_parts = torch.cat([x_BND.to(dtype) for x_BND, _ in parts], dim=1)
    inputs_BTD = all_parts.gather(
        1, source_BT[..., None].expand(-1, -1, all_parts.size(2))
    )
    before_B = None if before is None else before[1]
    first_B = torch.zeros_like(lengths_B) if before is None else before[1]
    speech_BT = (index_BT >= first_B[:, None]) & (
        index_BT < (first_B + speech_lengths_B)[:, None]
    )
    return Joined(
        inputs_BTD.masked_fill(~real_BT[..., None], 0.0),
        real_BT.long(),
        real_BT & speech_BT,
        lengths_B,
        before_B,
    )
