"""An ESPnet frontend as an encoder: log-mel values or the layers of an SSL model.

Dimensions: B utterances, N samples, F frames, D dimensions.
"""

import pkgutil
from typing import Any, Dict, Optional

import torch

from espnet_dus.data.speech_tokens.encoder import Encoder, weights_sha256
from espnet_dus.data.waveform import parse_fs

# ESPnet's frontends. Its own table of them imports all that its ASR needs.
FRONTENDS = {
    "default": "espnet2.asr.frontend.default:DefaultFrontend",
    "s3prl": "espnet2.asr.frontend.s3prl:S3prlFrontend",
    "huggingface": "espnet2.asr.frontend.huggingface:HuggingFaceFrontend",
    "espnet_ssl": "espnet2.asr.frontend.espnet_ssl:ESPnetSSLFrontend",
    "whisper": "espnet2.asr.frontend.whisper:WhisperFrontend",
}


class FrontendEncoder(Encoder):
    """A frozen frontend of ESPnet: log-mel, `s3prl`, `huggingface`, `espnet_ssl`, ...

    Args:
        frontend: Its name, as in ESPnet's `--frontend`.
        frontend_conf: Its options. `layer` is an option of `s3prl` and `espnet_ssl`;
            here, `huggingface` has it too: the index in the model's `hidden_states`.
        device: Where it runs.
    """

    def __init__(
        self,
        frontend: str,
        frontend_conf: Optional[Dict[str, Any]] = None,
        device: str = "cpu",
    ):
        if frontend not in FRONTENDS:
            raise ValueError(f"expected a frontend of {', '.join(FRONTENDS)}")
        conf = dict(frontend_conf or {})
        layer = conf.pop("layer", None) if frontend == "huggingface" else None
        self.sampling_rate = parse_fs(conf.get("fs", 16000))
        self.device = device
        module = pkgutil.resolve_name(FRONTENDS[frontend])(**conf)
        if layer is not None:
            _take_layer(module.encoder, layer)
        self.module = module.requires_grad_(False).eval().to(device)
        self.sha256 = weights_sha256(module)
        one, two = (
            self.forward(torch.zeros(1, n * self.sampling_rate, device=device)).size(1)
            for n in (1, 2)
        )
        self.frame_shift = round(self.sampling_rate / (two - one))

    def forward(self, samples_BN: torch.Tensor) -> torch.Tensor:
        """Compute the frontend's output, see the base class."""
        lengths_B = torch.full((len(samples_BN),), samples_BN.size(1))
        with torch.inference_mode():
            frames_BFD, _ = self.module(samples_BN, lengths_B.to(self.device))
        return frames_BFD.float()


def _take_layer(model: torch.nn.Module, layer: int) -> None:
    """Let a transformers model return a hidden layer as its last one."""
    model.config.output_hidden_states = True

    def replace(module, inputs, outputs):
        outputs.last_hidden_state = outputs.hidden_states[layer]
        return outputs

    model.register_forward_hook(replace)
