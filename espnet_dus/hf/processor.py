"""Turns waveforms into the input of an exported model, and its tokens into text."""

import functools
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.utterance_mvn import UtteranceMVN
from espnet2.legacy.nets.pytorch_backend.nets_utils import (
    make_non_pad_mask,
    make_pad_mask,
)
from transformers import BatchFeature, ProcessorMixin, SequenceFeatureExtractor
from transformers.utils import cached_file

from espnet_dus.data.speech_tokens.info import (
    CENTRES,
    INFO,
    check_same_tokenizer,
    read_tokenizer,
)
from espnet_dus.data.speech_tokens.tokenizer import SpeechTokenizer, load_tokenizer
from espnet_dus.data.waveform import as_waveform

Speech = Union[np.ndarray, torch.Tensor, Sequence[float]]

TOKENIZER_DIR = "speech_tokenizer"  # of a model's directory
HUB_OPTIONS = ("cache_dir", "revision", "token", "local_files_only", "force_download")


class DUSFeatureExtractor(SequenceFeatureExtractor):
    """Features or speech tokens as in training.

    Args:
        feature_size: Features per frame, or streams of speech tokens.
        sampling_rate: Rate of the training data in Hz.
        padding_value: Value on padding.
        frontend_conf: Options of ESPnet's `DefaultFrontend`; None: the model takes
            features or tokens, which are not changed.
        mean: Mean of each feature, which is subtracted (global normalization), or None.
        std: Standard deviation of each feature, which divides it, or None.
        utterance_mvn: Options of ESPnet's `UtteranceMVN`, or None.
        speech_tokenizer: Name and sha256 of the tokenizer of a model that takes speech
            tokens, or None. Its files are in `speech_tokenizer/` of the model's
            directory; its encoder is fetched at the first audio and runs on the CPU.
        kwargs: Those of every Hugging Face feature extractor.
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        frontend_conf: Optional[Dict[str, Any]] = None,
        mean: Optional[List[float]] = None,
        std: Optional[List[float]] = None,
        utterance_mvn: Optional[Dict[str, Any]] = None,
        speech_tokenizer: Optional[Dict[str, str]] = None,
        **kwargs: Any,
    ):
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.frontend_conf = frontend_conf
        self.mean, self.std = mean, std
        self.utterance_mvn = utterance_mvn
        self.speech_tokenizer = speech_tokenizer
        self._tokenizer_dir: Optional[Path] = None
        self._frontend = None
        if frontend_conf is not None:
            self._frontend = DefaultFrontend(**frontend_conf)

    def to_dict(self) -> Dict[str, Any]:
        """Return the options, from which the same object can be made."""
        options = super().to_dict()
        del options["_frontend"], options["_tokenizer_dir"]
        return options

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs: Any):
        """As Hugging Face's; the speech tokenizer's files are found too."""
        hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        extractor = loaded[0] if isinstance(loaded, tuple) else loaded
        if extractor.speech_tokenizer is not None:
            paths = [
                cached_file(
                    pretrained_model_name_or_path,
                    f"{TOKENIZER_DIR}/{name}",
                    _raise_exceptions_for_missing_entries=False,
                    **hub,
                )
                for name in (INFO, CENTRES)
            ]
            if paths[0] is not None:
                extractor.use_tokenizer(Path(paths[0]).parent)
        return loaded

    def use_tokenizer(self, directory: Union[str, Path]) -> None:
        """Name the directory of the speech tokenizer.

        Raises:
            ValueError: It is missing, incomplete or changed.
            RuntimeError: It is of another tokenizer than the model's.
        """
        info, _ = read_tokenizer(directory)
        check_same_tokenizer(self.speech_tokenizer, info, "this model")
        self._tokenizer_dir = Path(directory)

    def save_pretrained(self, save_directory: Union[str, Path], **kwargs: Any):
        """As Hugging Face's; the speech tokenizer's files are saved too."""
        self.save_tokenizer(save_directory)
        return super().save_pretrained(save_directory, **kwargs)

    def save_tokenizer(self, save_directory: Union[str, Path]) -> None:
        """Copy the speech tokenizer's files, if there are any."""
        if self._tokenizer_dir is not None:
            info, centres = read_tokenizer(self._tokenizer_dir)
            info.write(Path(save_directory, TOKENIZER_DIR), centres)

    @torch.no_grad()
    def __call__(
        self,
        audio: Union[Speech, Sequence[Speech]],
        sampling_rate: Optional[int] = None,
        return_tensors: str = "pt",
        padding: Union[bool, str] = True,
        return_attention_mask: bool = True,
    ) -> BatchFeature:
        """Extract the features of one utterance, or of a batch.

        Args:
            audio: Samples (samples,) as a NumPy array, a tensor or a list of floats; an
                array of features (F, M), or of integers (F, streams), speech tokens, if
                the model was trained on these; or a list of such for a batch.
            sampling_rate: Of the samples in Hz. They are converted to the rate of the
                training data; None: they have it.
            return_tensors: `pt` or `np`.
            padding: True or `longest`: there is no other padding.
            return_attention_mask: Return which frames are real.

        Returns:
            `input_features` (B, F, M or streams), padded on the right, and
            `attention_mask` (B, F), 1 on real frames.

        Raises:
            AudioError: See `as_waveform`.
            ValueError: Audio for a model that takes features, or another padding.
            RuntimeError: The speech tokenizer's encoder cannot be loaded.
        """
        if padding not in (True, "longest"):
            raise ValueError(f"padding: {padding!r}, expected True or 'longest'")
        is_batch = isinstance(audio, (list, tuple)) and not np.isscalar(audio[0])
        batch = list(audio) if is_batch else [audio]
        if self._frontend is not None:
            batch = [as_waveform(a, sampling_rate, self.sampling_rate) for a in batch]
        elif self._tokenizer_dir is not None:
            batch = self._tokenized(batch, sampling_rate)
        dtype = torch.float32 if self.speech_tokenizer is None else torch.long
        batch = [self._checked(torch.as_tensor(a)).to(dtype) for a in batch]
        lengths_B = torch.tensor([len(a) for a in batch])
        feats_BFM = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        if self._frontend is not None:
            feats_BFM, lengths_B = self._frontend(feats_BFM, lengths_B)
        if self.mean is not None:
            padding_BFM = make_pad_mask(lengths_B, feats_BFM, 1)
            feats_BFM = feats_BFM - torch.tensor(self.mean)
            feats_BFM = feats_BFM.masked_fill(padding_BFM, 0.0) / torch.tensor(self.std)
        if self.utterance_mvn is not None:
            feats_BFM, lengths_B = UtteranceMVN(**self.utterance_mvn)(
                feats_BFM, lengths_B
            )
        data = {"input_features": feats_BFM}
        if return_attention_mask:
            data["attention_mask"] = make_non_pad_mask(lengths_B).long()
        return BatchFeature(data, tensor_type=return_tensors)

    def _tokenized(
        self, batch: Sequence[Speech], sampling_rate: Optional[int]
    ) -> List[Speech]:
        """Turn the audio of a batch into tokens; tokens stay as they are."""
        arrays = [torch.as_tensor(speech) for speech in batch]
        is_audio = [a.ndim == 1 or a.is_floating_point() for a in arrays]
        waveforms = [
            as_waveform(speech, sampling_rate, self.sampling_rate)
            for speech, audio in zip(batch, is_audio)
            if audio
        ]
        made = iter(())
        if waveforms:
            sha256 = self.speech_tokenizer["sha256"]
            made = iter(_tokenizer(self._tokenizer_dir, sha256)(waveforms))
        return [next(made) if a else speech for speech, a in zip(batch, is_audio)]

    def _checked(self, array: torch.Tensor) -> torch.Tensor:
        """Check what is not audio."""
        if self._frontend is not None:
            return array
        expected = f"features of shape (frames, {self.feature_size})"
        fits = array.ndim == 2 and array.size(1) == self.feature_size
        if self.speech_tokenizer is not None:
            expected = (
                f"speech tokens of shape (frames, {self.feature_size}), made with the "
                f"tokenizer {self.speech_tokenizer['name']}"
            )
            fits = fits and not array.is_floating_point()
        if not fits:
            raise ValueError(
                f"this model takes {expected}, not {array.dtype} of shape "
                f"{tuple(array.shape)}"
            )
        return array


@functools.lru_cache(maxsize=1)
def _tokenizer(directory: Path, sha256: str) -> SpeechTokenizer:
    """Load a tokenizer once; the `sha256` is a part of the cache's key alone."""
    return load_tokenizer(directory)


class DUSProcessor(ProcessorMixin):
    """The feature extraction of training, and the base LM's tokenizer.

    Args:
        feature_extractor: Turns audio into the model's input.
        tokenizer: Turns the model's output into text.
    """

    def __init__(self, feature_extractor: DUSFeatureExtractor, tokenizer):
        super().__init__(feature_extractor, tokenizer)

    def __call__(self, audio, **kwargs: Any) -> BatchFeature:
        """Return the arguments of `generate`; see `DUSFeatureExtractor`."""
        return self.feature_extractor(audio, **kwargs)

    def save_pretrained(self, save_directory: Union[str, Path], **kwargs: Any):
        """As Hugging Face's; the speech tokenizer's files are saved too."""
        self.feature_extractor.save_tokenizer(save_directory)
        return super().save_pretrained(save_directory, **kwargs)
