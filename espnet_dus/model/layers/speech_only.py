"""Scope `speech`: a layer that works on the speech positions and on nothing else.

Dimensions: B sequences, T positions of a sequence, S speech positions of an utterance,
M speech positions of the batch, D hidden.
"""

import dataclasses
from typing import Optional

import torch


@dataclasses.dataclass(frozen=True)
class Speech:
    """Where the speech is: found once in a pass, and used by all layers.

    Finding it waits for the GPU (it reads numbers of positions); using it does not.

    Attributes:
        index_M: The speech positions, in order, as indices of all positions (B T).
        gathered_M: Their indices among the gathered frames (B S).
        mask_BS: bool, True on gathered frames that are speech. In an utterance without
            speech the first frame is marked too, since attention over no frames gives
            NaN; its output is dropped.
    """

    index_M: torch.Tensor
    gathered_M: torch.Tensor
    mask_BS: torch.Tensor

    def gather(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return the speech (B, S, D) without gaps, and with zeros as padding."""
        x_MD = x_BTD.flatten(0, 1).index_select(0, self.index_M)
        empty = x_BTD.new_zeros((self.mask_BS.numel(), x_BTD.size(2)))
        x_XD = empty.index_copy(0, self.gathered_M, x_MD)
        return x_XD.unflatten(0, self.mask_BS.shape)

    def scatter(self, y_BSD: torch.Tensor, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `x_BTD` with the gathered frames `y_BSD` in their positions."""
        y_MD = y_BSD.flatten(0, 1).index_select(0, self.gathered_M).to(x_BTD.dtype)
        return x_BTD.flatten(0, 1).index_copy(0, self.index_M, y_MD).view_as(x_BTD)


def find_speech(speech_mask_BT: torch.Tensor, training: bool) -> Optional[Speech]:
    """Find the speech positions of a pass.

    Args:
        speech_mask_BT: bool, True where a position is speech.
        training: Return a `Speech` of no positions where there is no speech, so that
            all parameters have a gradient, as DDP requires.

    Returns:
        The positions; None where there is no speech and nothing is trained.
    """
    index_M = speech_mask_BT.flatten().nonzero().squeeze(1)
    if not len(index_M) and not training:
        return None
    lengths_B = speech_mask_BT.sum(1).clamp(min=1)
    frames_S = torch.arange(int(lengths_B.max()), device=index_M.device)
    mask_BS = frames_S[None] < lengths_B[:, None]
    rank_BT = speech_mask_BT.cumsum(1) - 1
    sequence_M = index_M.div(speech_mask_BT.size(1), rounding_mode="floor")
    gathered_M = sequence_M * len(frames_S) + rank_BT.flatten()[index_M]
    return Speech(index_M, gathered_M, mask_BS)


class SpeechOnlyLayer(torch.nn.Module):
    """Applies a bidirectional layer to the speech positions of each sequence.

    The speech positions are gathered, so that the layer sees an utterance as an encoder
    would, without gap or padding between. Its output is written back to where they
    came from. Every other position is left unchanged, bit for bit. An input without
    speech (text, or a cached decoding step) is returned as it is.

    Args:
        layer: A module with `forward(x_BSD, mask_BS) -> x_BSD`, which does its own
            gradient checkpointing. Its input is zero on padding, so that no transcript
            after the speech can reach it, whatever its convolutions do there.
    """

    takes_speech = True
    SPEECH_MODULES = ("layer",)  # modules that see speech positions only

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden_states: torch.Tensor, speech: Optional[Speech] = None, **_
    ) -> torch.Tensor:
        """Transform the speech positions.

        Args:
            hidden_states: (B, T, D).
            speech: Where the speech is, or None.

        Returns:
            (B, T, D).
        """
        if speech is None:
            return hidden_states
        y_BSD = self.layer(speech.gather(hidden_states), speech.mask_BS)
        return speech.scatter(y_BSD, hidden_states)
