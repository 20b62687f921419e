"""The speech embedder: features -> the base LM's embedding space.

Dimensions: B utterances, F feature frames, S speech positions, M features, D hidden.
"""

from typing import Tuple

import torch
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    Conv2dSubsampling,
    Conv2dSubsampling8,
    TooShortUttError,
)

from espnet_dus.data.lengths import subsampling

# as ESPnet's `input_layer`
CONVOLUTIONS = {"conv2d": Conv2dSubsampling, "conv2d8": Conv2dSubsampling8}


class SpeechEmbedder(torch.nn.Module):
    """Subsampling of feature frames, then a projection. Trained in every arm.

    Args:
        input_size: Features per frame (M).
        hidden_size: The base LM's hidden size (D).
        embedding_rms: Root mean square of the base LM's token embeddings: the speech
            embeddings start at this scale, which its first layers expect.
        input_layer: `conv2d` (4 frames to a position) or `conv2d8` (8): ESPnet's
            convolutions. `linear`, `linear2`, `linear4`: 1, 2 or 4 frames, one after
            the other, for a frontend that is at 50 frames a second already.
        channels: Channels of the convolutions.
        dropout_rate: Dropout on the embeddings.

    Raises:
        ValueError: An unknown `input_layer`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        embedding_rms: float,
        input_layer: str = "conv2d8",
        channels: int = 256,
        dropout_rate: float = 0.1,
    ):
        super().__init__()
        self.input_size = input_size
        self.min_frames, factor = subsampling(input_layer)
        if input_layer in CONVOLUTIONS:
            # the base LM encodes positions: no positional encoding here
            self.subsample = CONVOLUTIONS[input_layer](
                input_size, channels, 0.0, torch.nn.Identity()
            )
            size = channels
        else:
            self.subsample = StackedFrames(factor)
            size = input_size * factor
        self.norm = torch.nn.LayerNorm(size)
        self.project = torch.nn.Linear(size, hidden_size)
        self.dropout = torch.nn.Dropout(dropout_rate)
        torch.nn.init.normal_(self.project.weight, std=embedding_rms * size**-0.5)
        torch.nn.init.zeros_(self.project.bias)

    def forward(
        self, feats_BFM: torch.Tensor, lengths_B: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Embed features.

        Args:
            feats_BFM: (B, F, M) features, padded at the right.
            lengths_B: (B,) frames of each utterance.

        Returns:
            (B, S, D) speech embeddings and (B,) their lengths.

        Raises:
            TooShortUttError: An utterance is too short to give one position.
        """
        if int(lengths_B.min()) < self.min_frames:
            raise TooShortUttError(
                f"has {int(lengths_B.min())} frames, {self.min_frames} are the fewest",
                int(lengths_B.min()),
                self.min_frames,
            )
        # Few distinct shapes: on a CPU each new one costs seconds of kernel building.
        feats_BFM = torch.nn.functional.pad(
            feats_BFM, (0, 0, 0, -feats_BFM.size(1) % 64)
        )
        mask_B1F = ~make_pad_mask(lengths_B, maxlen=feats_BFM.size(1))[:, None]
        x_BSC, mask_B1S = self.subsample(feats_BFM, mask_B1F)
        x_BSD = self.dropout(self.project(self.norm(x_BSC)))
        lengths_B = mask_B1S.squeeze(1).sum(1)
        return x_BSD[:, : int(lengths_B.max())], lengths_B


class StackedFrames(torch.nn.Module):
    """Joins frames into one, without overlap; what does not fill one is left out.

    Args:
        factor: Number of frames (N).
    """

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(
        self, x_BFM: torch.Tensor, mask_B1F: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Join (B, F, M) under a mask (B, 1, F) to (B, S, N M) under one (B, 1, S)."""
        num = x_BFM.size(1) // self.factor
        x_BSN = x_BFM[:, : num * self.factor].unflatten(1, (num, self.factor))
        return x_BSN.flatten(2), mask_B1F[..., self.factor - 1 :: self.factor]
