"""A trained model as one Python object: waveforms in, transcripts out."""

from pathlib import Path
from typing import Any, List, Optional, Sequence, Union

import numpy as np
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError

from espnet_dus.model import Hypothesis
from espnet_dus.search.greedy import greedy_search
from espnet_dus.task import DUSTask, min_length

Waveform = Union[np.ndarray, torch.Tensor]


class Speech2Text:
    """Transcribes speech with a trained model.

    Args:
        asr_train_config: The `config.yaml` of the training.
        asr_model_file: A checkpoint, such as `valid.acc.ave.pth`.
        device: `cpu`, `cuda` or `cuda:N`.
        maxlenratio: At most so many tokens for a speech position.

    Examples:
        >>> speech2text = Speech2Text("exp/dus_x/config.yaml", "exp/dus_x/latest.pth")
        >>> speech, rate = soundfile.read("speech.wav")
        >>> text, token, token_int, score = speech2text(speech)[0]
    """

    def __init__(
        self,
        asr_train_config: Union[str, Path],
        asr_model_file: Union[str, Path],
        device: str = "cpu",
        maxlenratio: float = 1.0,
    ):
        self.model, self.train_args = DUSTask.build_model_from_file(
            asr_train_config, asr_model_file, device
        )
        self.model.eval()
        self.device = device
        self.min_length = min_length(self.train_args)
        self.maxlenratio = maxlenratio

    @staticmethod
    def from_pretrained(
        model_tag: Union[str, Path],
        base_lm: Optional[Union[str, Path]] = None,
        **kwargs: Any,
    ) -> "Speech2Text":
        """Load a published model: see `espnet_dus.zoo.download.download`.

        Args:
            model_tag: A pack (`.zip`), the URL of one, or `user/name[@revision]` on the
                Hugging Face hub.
            base_lm: The base LM's directory; None: it is fetched, once.
            kwargs: The other options of this class.

        Returns:
            The model.

        Raises:
            ValueError: The pack is damaged, was tampered with, or the base LM is
                another than the one it belongs to.
            RuntimeError: Something could not be fetched, or the checkpoint does not fit
                the configuration.

        Examples:
            >>> speech2text = Speech2Text.from_pretrained("user/name", device="cuda")
        """
        from espnet_dus.zoo.download import download

        return Speech2Text(**download(model_tag, base_lm), **kwargs)

    def __call__(self, speech: Union[Waveform, Sequence[Waveform]]) -> List[Hypothesis]:
        """Transcribe one utterance, or a batch.

        Args:
            speech: Samples (samples,) at the training data's rate, or features (F, M)
                if the model was trained on features; or a list of such.

        Returns:
            A hypothesis for each utterance.

        Raises:
            TooShortUttError: An utterance is too short for the subsampling.
        """
        batch = speech if isinstance(speech, (list, tuple)) else [speech]
        batch = [torch.as_tensor(s).to(torch.float32) for s in batch]
        lengths = torch.tensor([len(s) for s in batch], device=self.device)
        if (shortest := int(lengths.min())) < self.min_length:
            raise TooShortUttError(
                f"has {shortest} samples or frames, {self.min_length} are the fewest",
                shortest,
                self.min_length,
            )
        padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        return greedy_search(
            self.model, padded.to(self.device), lengths, self.maxlenratio
        )
