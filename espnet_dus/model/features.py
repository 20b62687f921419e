"""Features of raw speech, and the model that collects their statistics."""

from typing import Dict, Optional, Tuple

import torch
from espnet2.train.abs_espnet_model import AbsESPnetModel


class FeatureModel(AbsESPnetModel):
    """The frontend alone, for collecting statistics: no base LM need be loaded."""

    def __init__(self, frontend: Optional[torch.nn.Module]):
        super().__init__()
        self.frontend = frontend
        # ESPnet builds an optimizer in this stage too, and it wants a parameter
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, **batch):
        """Not to be trained."""
        raise RuntimeError("this model only collects statistics")

    def collect_feats(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, **_
    ) -> Dict[str, torch.Tensor]:
        """Give features (B, F, M) and their lengths (B,)."""
        feats, lengths = extract_features(self.frontend, speech, speech_lengths)
        return {"feats": feats, "feats_lengths": lengths}


def extract_features(
    frontend: Optional[torch.nn.Module],
    speech: torch.Tensor,
    speech_lengths: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Give features (B, F, M), longest first-dimension trimmed, and their lengths."""
    speech = speech[:, : int(speech_lengths.max())]
    if frontend is None:
        return speech, speech_lengths
    return frontend(speech, speech_lengths)
