"""Speech enters the base LM at the scale of its token embeddings.

Trained layers before the first base layer leave vectors many times as long as those
that the base LM knows, and what its own layers add to these no longer counts:
SmolLM2-135M repeats a text given as embeddings the worse, the longer these are made.

Dimensions: B utterances, T positions, D hidden.
"""

from typing import Any, Dict, Optional, Tuple

import torch


class SpeechLimit:
    """A forward pre-hook of the first base layer: shortens the vectors of speech.

    Args:
        lm: The base LM, for its token embeddings.
        times: A vector's root mean square is at most so many times theirs. Vectors
            below that pass bit for bit, as do all positions of text.
    """

    def __init__(self, lm: torch.nn.Module, times: float):
        self.embeddings = lm.get_input_embeddings()
        self.times = times
        self.limit: Optional[float] = None  # weights may be loaded after this

    def __call__(self, layer, args: Tuple, kwargs: Dict[str, Any]):
        """Give the layer's arguments, the first of them hidden states (B, T, D)."""
        speech_mask_BT = kwargs.get("speech_mask")
        if speech_mask_BT is None or not speech_mask_BT.any():
            return args, kwargs
        x_BTD = torch.where(speech_mask_BT[..., None], self.shorten(args[0]), args[0])
        return (x_BTD, *args[1:]), kwargs

    def shorten(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Give vectors (B, T, D) of speech, none of them above the limit."""
        if self.limit is None:
            table_VD = self.embeddings.weight.detach().float()
            self.limit = self.times * float(table_VD.pow(2).mean().sqrt())
        mean_square_BT1 = x_BTD.float().pow(2).mean(-1, keepdim=True)
        # the gradient of a root at zero, which padding is, would be no number
        factor_BT1 = self.limit * (mean_square_BT1 + 1e-20).rsqrt()
        return x_BTD * factor_BT1.clamp(max=1.0).to(x_BTD.dtype)
