"""Scope `speech`: a layer that works on the speech positions and on nothing else.

Dimensions: B utterances, T positions of the LLM sequence, S speech positions, D hidden.
"""

from typing import Optional

import torch
from transformers.modeling_layers import GradientCheckpointingLayer


class SpeechOnlyLayer(GradientCheckpointingLayer):
    """Applies a bidirectional layer to the speech positions of each sequence.

    The speech positions are gathered, so that the layer sees an utterance as an encoder
    would, without gap or padding between, and its output is written back to where they
    came from. Every other position leaves as it came, bit for bit. An input without
    speech (text, or a cached decoding step) does not touch the layer at all.

    Args:
        layer: A module with `forward(x_BSD, mask_BS) -> x_BSD`.
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
        if speech_mask is None or not speech_mask.any():
            return x_BTD
        lengths_B = speech_mask.sum(1)
        # a stable sort moves the speech positions to the front, in their order
        order_BT = torch.argsort((~speech_mask).to(torch.int8), dim=1, stable=True)
        index_BSD = order_BT[:, : int(lengths_B.max()), None].expand(
            -1, -1, x_BTD.size(2)
        )
        x_BSD = x_BTD.gather(1, index_BSD)
        frames_S = torch.arange(index_BSD.size(1), device=x_BTD.device)
        mask_BS = frames_S[None] < lengths_B[:, None]
        # An utterance without speech in a batch with some: one frame stands in, because
        # attention over no frames at all is not a number. Its output is dropped below.
        present_BS = mask_BS.clone()
        present_BS[:, 0] = True
        y_BSD = self.layer(x_BSD, present_BS)
        y_BSD = torch.where(mask_BS[..., None], y_BSD, x_BSD)
        return x_BTD.scatter(1, index_BSD, y_BSD)
