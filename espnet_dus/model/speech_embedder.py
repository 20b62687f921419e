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

from espnet_dus.data.lengths import fewest_frames

# as ESPnet's `input_layer`
SUBSAMPLING = {"conv2d": Conv2dSubsampling, "conv2d8": Conv2dSubsampling8}


class SpeechEmbedder(torch.nn.Module):
    """ESPnet's convolutional subsampling, then a projection. Trained in every arm.

    Args:
        input_size: Features per frame (M).
        hidden_size: The base LM's hidden size (D).
        embedding_rms: Root mean square of the base LM's token embeddings: the speech
            embeddings start at this scale, which is what its first layers know.
        input_layer: `conv2d` (4 frames to a position) or `conv2d8` (8).
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
        self.min_frames = fewest_frames(input_layer)
        subsampling = SUBSAMPLING[input_layer]
        # positions are the base LM's business: no positional encoding here
        self.subsample = subsampling(input_size, channels, 0.0, torch.nn.Identity())
        self.norm = torch.nn.LayerNorm(channels)
        self.project = torch.nn.Linear(channels, hidden_size)
        self.dropout = torch.nn.Dropout(dropout_rate)
        torch.nn.init.normal_(self.project.weight, std=embedding_rms * channels**-0.5)
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
