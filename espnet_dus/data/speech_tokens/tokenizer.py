"""Audio to speech tokens: an encoder, cluster centres, and repeats left out.

Dimensions: F frames, K streams, D dimensions, C clusters.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Union

import numpy as np
import torch

from espnet_dus.data.speech_tokens.devices import device_of_process
from espnet_dus.data.speech_tokens.encoder import Encoder
from espnet_dus.data.speech_tokens.encoder_factory import make_encoder
from espnet_dus.data.speech_tokens.info import TokenizerInfo, read_tokenizer


@dataclass(frozen=True)
class Tokens:
    """The speech tokens of an utterance.

    Attributes:
        tokens_FK: int32 (F, K).
        run_lengths_F: int32 (F,): frames of audio that each represents; None where
            repeats are not removed, which is one for each.
    """

    tokens_FK: np.ndarray
    run_lengths_F: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.tokens_FK)

    @property
    def num_frames(self) -> int:
        """Number of frames of audio that they represent."""
        runs_F = self.run_lengths_F
        return len(self) if runs_F is None else int(runs_F.sum())


class SpeechTokenizer:
    """Turns waveforms into speech tokens; `load_tokenizer` makes it.

    An utterance's tokens depend on its own audio and the device alone, not on what else
    is in the call.

    Args:
        info: Its description.
        encoder: Computes vectors, or tokens if `centres` is None.
        centres: Cluster centres (C, D), float32, or None.

    Attributes:
        info: Its description.
    """

    def __init__(
        self, info: TokenizerInfo, encoder: Encoder, centres: Optional[np.ndarray]
    ):
        self.info = info
        self.encoder = encoder
        self.centres_CD = None
        if centres is not None:
            self.centres_CD = torch.from_numpy(centres).to(encoder.device)
            self.squares_C = self.centres_CD.pow(2).sum(-1)

    def __call__(self, waveforms: Sequence[np.ndarray]) -> List[np.ndarray]:
        """Tokenize utterances.

        Args:
            waveforms: Samples (N,) at `info.sampling_rate`, float32 from -1 to 1 or
                int16.

        Returns:
            int32 (frames, streams) of each.

        Raises:
            ValueError: A waveform is empty, has another shape or values that are not
                finite.
        """
        return [tokens.tokens_FK for tokens in self.tokenize(waveforms)]

    def tokenize(self, waveforms: Sequence[np.ndarray]) -> List[Tokens]:
        """Tokenize utterances; the run lengths are returned too. See `__call__`."""
        return [self._tokens(frames_FD) for frames_FD in self.encoder(waveforms)]

    def _tokens(self, frames_FD: torch.Tensor) -> Tokens:
        if self.centres_CD is not None:
            # the squared norm of a frame is the same for all centres
            distance_FC = self.squares_C - 2 * frames_FD @ self.centres_CD.T
            frames_FD = distance_FC.argmin(-1, keepdim=True)
        tokens_FK = frames_FD.cpu().numpy().astype(np.int32)
        if not self.info.remove_repeats:
            return Tokens(tokens_FK)
        return without_repeats(tokens_FK)


def without_repeats(tokens_F1: np.ndarray) -> Tokens:
    """Leave out each token of a single stream that repeats the one before it."""
    starts = np.flatnonzero(np.diff(tokens_F1[:, 0], prepend=-1))
    lengths = np.diff(starts, append=len(tokens_F1)).astype(np.int32)
    return Tokens(tokens_F1[starts], lengths)


def load_tokenizer(directory: Union[str, Path], device: str = "cpu") -> SpeechTokenizer:
    """Load a tokenizer with its encoder.

    Args:
        directory: A tokenizer directory.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        ValueError: The directory is missing, incomplete or changed, or the encoder is
            another than the one that the tokenizer was made with.
        RuntimeError: The encoder cannot be fetched, or something it needs is not
            installed.
    """
    info, centres = read_tokenizer(directory)
    expected = info.encoder["sha256"]
    spec = {key: value for key, value in info.encoder.items() if key != "sha256"}
    encoder = make_encoder(spec, device)
    if encoder.sha256 != expected:
        raise ValueError(
            f"{directory}: the encoder of the speech tokenizer {info.name} has other "
            f"weights (sha256 {encoder.sha256[:12]}) than when the tokenizer was made "
            f"({expected[:12]}): use the former weights, or make the tokenizer again "
            "(stage 3) and train with it"
        )
    return SpeechTokenizer(info, encoder, centres)


@functools.lru_cache(maxsize=1)
def tokenizer_of_process(directory: Path, sha256: str) -> SpeechTokenizer:
    """Load a tokenizer once in each process of several, on its share of the GPUs.

    `sha256` is `TokenizerInfo.sha256`: another tokenizer in the same place is loaded.
    """
    return load_tokenizer(directory, device_of_process())
