"""The encoder of OpusLM, which computes the tokens of an SSL model and of a codec.

Dimensions: B utterances, N samples, F frames, K streams.
"""

from typing import Optional

import torch

from espnet_dus.data.speech_tokens.encoder import Encoder, weights_sha256


class OpusLM(Encoder):
    """ESPnet's tokenizer of OpusLM: XEUS with k-means, and the streams of a codec.

    Args:
        codec_hf_model_tag: ESPnet codec on the Hugging Face hub; None: no codec.
        ssl_hf_model_tag: SSL model on the hub; None: no semantic stream.
        codec_max_token_per_frame: Streams of the codec that are used.
        device: Where it runs.
    """

    def __init__(
        self,
        codec_hf_model_tag: Optional[str] = None,
        ssl_hf_model_tag: Optional[str] = None,
        codec_max_token_per_frame: int = 8,
        device: str = "cpu",
    ):
        from espnet2.speechlm.model.speechlm.multimodal_io.audio import DiscreteAudioIO

        self.io = DiscreteAudioIO(
            codec_choice=codec_hf_model_tag and "ESPnet",
            codec_hf_model_tag=codec_hf_model_tag,
            codec_max_token_per_frame=codec_max_token_per_frame,
            ssl_choice=ssl_hf_model_tag and "ESPnet",
            ssl_hf_model_tag=ssl_hf_model_tag,
            device=device,
        )
        self.io.requires_grad_(False).eval().to(device)
        self.device = device
        self.sampling_rate = self.io.sample_rate
        self.frame_shift = self.io.frame_shift
        self.vocab_sizes = (*self.io.ssl_vocab_size, *self.io.codec_vocab_size)
        self.sha256 = weights_sha256(self.io)

    def forward(self, samples_BN: torch.Tensor) -> torch.Tensor:
        """Compute the tokens of all streams, see the base class."""
        lengths_B = torch.full((len(samples_BN),), samples_BN.size(1))
        codes_BFK = self.io.encode_batch(
            samples_BN[..., None], lengths_B.to(self.device)
        )
        # ESPnet counts through all streams, each of which begins with a padding token
        first_K = [start + 1 for start, _ in self.io.get_stream_interval()]
        return codes_BFK - codes_BFK.new_tensor(first_K)
