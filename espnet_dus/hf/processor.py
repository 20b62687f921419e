"""Turns waveforms into the input of an exported model, and its tokens into text."""

from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.utterance_mvn import UtteranceMVN
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
from transformers import BatchFeature, ProcessorMixin

from espnet_dus.data.audio import as_waveform

Waveform = Union[np.ndarray, torch.Tensor, Sequence[float]]


class DUSProcessor(ProcessorMixin):
    """The tokenizer, and ESPnet's feature extraction as in training.

    Args:
        tokenizer: The base LM's tokenizer.
        prompt: Text between speech and transcript.
        frontend_conf: Options of ESPnet's `DefaultFrontend`; None: the model takes
            features or tokens, which are not changed.
        mean: Mean of each feature, which is subtracted (global normalization), or None.
        std: Standard deviation of each feature, which divides it, or None.
        utterance_mvn: Options of ESPnet's `UtteranceMVN`, or None.
        takes_tokens: The model takes speech tokens.
    """

    def __init__(
        self,
        tokenizer,
        prompt: str = "",
        frontend_conf: Optional[Dict[str, Any]] = None,
        mean: Optional[List[float]] = None,
        std: Optional[List[float]] = None,
        utterance_mvn: Optional[Dict[str, Any]] = None,
        takes_tokens: bool = False,
    ):
        super().__init__(tokenizer)
        self.prompt = prompt
        self.frontend_conf = frontend_conf
        self.mean, self.std = mean, std
        self.utterance_mvn = utterance_mvn
        self.takes_tokens = takes_tokens
        self.frontend = None
        if frontend_conf is not None:
            self.frontend = DefaultFrontend(**frontend_conf)

    @torch.no_grad()
    def __call__(self, speech: Union[Waveform, Sequence[Waveform]]) -> BatchFeature:
        """Extract the features of one utterance, or of a batch.

        Args:
            speech: Samples (samples,) at the training data's rate as a NumPy array, a
                tensor or a list of floats; an array of features (F, M) or of speech
                tokens (F, streams) if the model was trained on these; or a list of such
                for a batch.

        Returns:
            The arguments of the model's `generate`: `input_features` (B, F, M or
            streams), `feature_lengths` (B,) and `input_ids` (B, N), the prompt.
        """
        is_batch = isinstance(speech, (list, tuple)) and not np.isscalar(speech[0])
        batch = speech if is_batch else [speech]
        if self.frontend is not None:
            batch = [as_waveform(s) for s in batch]
        dtype = torch.long if self.takes_tokens else torch.float32
        batch = [torch.as_tensor(s, dtype=dtype) for s in batch]
        lengths_B = torch.tensor([len(s) for s in batch])
        feats_BFM = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        if self.frontend is not None:
            feats_BFM, lengths_B = self.frontend(feats_BFM, lengths_B)
        if self.mean is not None:
            padding_BFM = make_pad_mask(lengths_B, feats_BFM, 1)
            feats_BFM = feats_BFM - torch.tensor(self.mean)
            feats_BFM = feats_BFM.masked_fill(padding_BFM, 0.0) / torch.tensor(self.std)
        if self.utterance_mvn is not None:
            feats_BFM, lengths_B = UtteranceMVN(**self.utterance_mvn)(
                feats_BFM, lengths_B
            )
        prompt = self.tokenizer(self.prompt, add_special_tokens=False).input_ids
        prompt_N = torch.tensor(prompt, dtype=torch.long)
        return BatchFeature(
            {
                "input_features": feats_BFM,
                "feature_lengths": lengths_B,
                "input_ids": prompt_N.expand(len(batch), -1),
            }
        )
