"""Scope `speech`: a layer that works on the speech positions and on nothing else.

Dimensions: B utterances, T positions of the LLM sequence, S speech positions, D hidden.
"""

from typing import Optional, Tuple

import torch


def speech_positions(
    speech_mask: Optional[torch.Tensor], hidden_BTD: torch.Tensor, training: bool
) -> Optional[Tuple[torch.Tensor, torch.Tensor]]:
    """Find the speech positions, to be gathered without gap or padding between.

    Args:
        speech_mask: bool (B, T), True where a position is speech, or None.
        hidden_BTD: (B, T, D) hidden states, for shape and device.
        training: Return one position even if there is no speech. Its output is then
            masked, so that all parameters have a gradient, as DDP requires.

    Returns:
        Indices (B, S) along T, in order, and the mask bool (B, S) of those that are
        speech; None where there is no speech.
    """
    if speech_mask is None and training:
        speech_mask = hidden_BTD.new_zeros(hidden_BTD.shape[:2], dtype=torch.bool)
    if speech_mask is None:
        return None
    lengths_B = speech_mask.sum(1)
    longest = max(int(lengths_B.max()), int(training))
    if longest == 0:
        return None
    # a stable sort moves the speech positions to the front, in their order
    order_BT = torch.argsort((~speech_mask).to(torch.int8), dim=1, stable=True)
    frames_S = torch.arange(longest, device=hidden_BTD.device)
    return order_BT[:, :longest], frames_S[None] < lengths_B[:, None]


class SpeechOnlyLayer(torch.nn.Module):
    """Applies a bidirectional layer to the speech positions of each sequence.

    The speech positions are gathered, so that the layer sees an utterance as an encoder
    would, without gap or padding between. Its output is written back to where they
    came from. Every other position is left unchanged, bit for bit. An input without
    speech (text, or a cached decoding step) is returned as it is.

    Args:
        layer: A module with `forward(x_BSD, mask_BS) -> x_BSD`, which does its own
            gradient checkpointing. Its input is zero on padding, so that no transcript
            behind the speech can reach it, whatever its convolutions do there.
    """

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer = layer

    def forward(
        self,
        hidden_states: torch.Tensor,
        speech_mask: Optional[torch.Tensor] = None,
        **_,
    ) -> torch.Tensor:
        """Transform the speech positions.

        Args:
            hidden_states: (B, T, D).
            speech_mask: bool (B, T), True where a position is speech, or None.

        Returns:
            (B, T, D).
        """
        x_BTD = hidden_states
        found = speech_positions(speech_mask, x_BTD, self.training)
        if found is None:
            return x_BTD
        index_BS, mask_BS = found
        index_BSD = index_BS[..., None].expand(-1, -1, x_BTD.size(2))
        x_BSD = x_BTD.gather(1, index_BSD)
        # In an utterance without speech one frame is computed and then dropped:
        # attention over no frames at all is not a number.
        present_BS = mask_BS.clone()
        present_BS[:, 0] = True
        mask_BS1 = mask_BS[..., None]
        y_BSD = self.layer(x_BSD.masked_fill(~mask_BS1, 0.0), present_BS)
        y_BSD = torch.where(mask_BS1, y_BSD, x_BSD)
        return x_BTD.scatter(1, index_BSD, y_BSD)
