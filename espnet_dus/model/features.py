"""Features of raw speech: frontends, and the model that collects their statistics."""

import pkgutil
from typing import Dict, Optional, Tuple

import torch
from espnet2.train.abs_espnet_model import AbsESPnetModel
from espnet2.train.class_choices import ClassChoices

from espnet_dus.data.speech_tokens import frontend_encoder
from espnet_dus.io import tensors_sha256

FRONTENDS = {
    **frontend_encoder.FRONTENDS,
    "ctranslate2_whisper": (
        "espnet_dus.model.whisper_frontend:CTranslate2WhisperFrontend"
    ),
    "fused": "espnet2.asr.frontend.fused:FusedFrontends",
}
# Attributes of these frontends that hold a pretrained model.
PRETRAINED = ("upstream", "encoder", "whisper")


class FrontendChoices(ClassChoices):
    """Imports the chosen frontend only: others import all of ESPnet, for seconds."""

    def __init__(self):
        super().__init__("frontend", {}, default="default")
        self.classes = FRONTENDS

    def get_class(self, name: Optional[str]) -> Optional[type]:
        """Return the class of a name.

        Raises:
            ValueError: The name is unknown.
            ImportError: A package that it needs is not installed.
        """
        if name not in FRONTENDS:
            return super().get_class(name)
        return pkgutil.resolve_name(FRONTENDS[name])


def pretrained_parts(frontend: Optional[torch.nn.Module]) -> Dict[str, torch.nn.Module]:
    """Return the pretrained models of a frontend, by name; a fused one has several."""
    found: Dict[str, torch.nn.Module] = {}
    for name, module in [] if frontend is None else frontend.named_modules():
        nested = name.startswith(tuple(f"{outer}." for outer in found))
        if name.rpartition(".")[2] in PRETRAINED and not nested:
            found[name] = module
    return found


def freeze_pretrained(frontend: torch.nn.Module) -> str:
    """Freeze the pretrained models of a frontend.

    Returns:
        A SHA-256 over the names, types, shapes and values of their weights, or that of
        a frontend whose weights are not PyTorch tensors; "" where there are none.
    """
    for module in frontend.modules():
        # a second copy of the weights, for initializations that overwrite them
        vars(module).pop("pretrained_params", None)
    parts = pretrained_parts(frontend)
    weights = []
    for part, module in parts.items():
        state = module.requires_grad_(False).state_dict()
        weights += [(f"{part}.{name}", state[name]) for name in sorted(state)]
    return tensors_sha256(weights) if parts else getattr(frontend, "sha256", "")


class FeatureModel(AbsESPnetModel):
    """The frontend alone, for collecting statistics without loading a base LM."""

    def __init__(self, frontend: Optional[torch.nn.Module]):
        super().__init__()
        self.frontend = frontend
        # ESPnet builds an optimizer in this stage too, which needs a parameter
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, **batch):
        """Refuse to be trained."""
        raise RuntimeError("this model only collects statistics")

    def collect_feats(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, **_
    ) -> Dict[str, torch.Tensor]:
        """Return features (B, F, M) and their lengths (B,)."""
        feats, lengths = extract_features(self.frontend, speech, speech_lengths)
        return {"feats": feats, "feats_lengths": lengths}


def extract_features(
    frontend: Optional[torch.nn.Module],
    speech: torch.Tensor,
    speech_lengths: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return features (B, F, M), no longer than the longest, and their lengths."""
    speech = speech[:, : int(speech_lengths.max())]
    if frontend is None:
        return speech, speech_lengths
    return frontend(speech, speech_lengths)
