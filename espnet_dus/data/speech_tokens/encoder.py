"""The interface of encoders, which compute a vector or tokens for each frame of audio.

An encoder never sees utterances of different lengths at once. An utterance is padded
with silence to a multiple of half a second, and the number of utterances in a batch
follows from that length alone. So the tokens of an utterance depend on nothing but its
own audio (and the device), whether the encoder masks padding or not, and shapes repeat.

Dimensions: B utterances, N samples, F frames, D dimensions or streams.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from itertools import batched, chain, islice
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from espnet_dus.data.waveform import to_pcm16
from espnet_dus.io import tensors_sha256

PAD_SECONDS = 0.5  # an utterance is padded to a multiple of this
BATCH_SECONDS = 64  # on a GPU; on a CPU utterances go alone


class Encoder(ABC):
    """Computes frames of audio.

    Attributes:
        sampling_rate: Of the audio, in Hz.
        frame_shift: Samples from one frame to the next.
        vocab_sizes: Of encoders that give tokens: number of tokens of each stream.
            None: frames are vectors, which k-means turns into tokens.
        max_seconds: Longer audio is cut into windows of equal length; None: never.
        sha256: Of the weights; "" where there are none.
        device: Where it runs.
    """

    sampling_rate: int
    frame_shift: int
    vocab_sizes: Optional[Tuple[int, ...]] = None
    max_seconds: Optional[float] = None
    sha256: str = ""
    device: str = "cpu"

    @abstractmethod
    def forward(self, samples_BN: torch.Tensor) -> torch.Tensor:
        """Compute the frames (B, F, D) of audio of one length, float32 or integers."""

    def __call__(self, waveforms: Sequence[np.ndarray]) -> List[torch.Tensor]:
        """Compute the frames of utterances.

        Args:
            waveforms: Samples (N,) at `sampling_rate`, float32 from -1 to 1 or int16.
                They are rounded to 16 bits, as stage 3 stores audio.

        Returns:
            Frames (F, D) of each: one for each `frame_shift` samples, the last of which
            may be incomplete.

        Raises:
            ValueError: A waveform is empty, has another shape or values that are not
                finite.
        """
        windows = [self._windows(_checked(waveform)) for waveform in waveforms]
        frames = iter(self._encode(list(chain.from_iterable(windows))))
        return [torch.cat([*islice(frames, len(of_one))]) for of_one in windows]

    def _windows(self, waveform: np.ndarray) -> List[np.ndarray]:
        num_frames = -(-len(waveform) // self.frame_shift)
        longest = num_frames
        if self.max_seconds is not None:
            # with room for the padding
            seconds = self.max_seconds - PAD_SECONDS
            longest = int(seconds * self.sampling_rate / self.frame_shift)
        number = -(-num_frames // longest)
        bounds = [n * num_frames // number * self.frame_shift for n in range(1, number)]
        return np.split(waveform, bounds)

    @torch.inference_mode()
    def _encode(self, windows: Sequence[np.ndarray]) -> List[torch.Tensor]:
        unit = int(PAD_SECONDS * self.sampling_rate)
        of_length: Dict[int, List[int]] = defaultdict(list)
        for n, window in enumerate(windows):
            # at least one frame of silence: kernels are longer than the frame shift
            padded = -(-(len(window) + self.frame_shift) // unit) * unit
            of_length[padded].append(n)
        frames: List[torch.Tensor] = [torch.empty(0)] * len(windows)
        for length, members in of_length.items():
            rows = 1
            if self.device != "cpu":
                rows = max(1, int(BATCH_SECONDS * self.sampling_rate / length))
            for batch in batched(members, rows):
                # always `rows` rows: results may depend on the shape of a batch
                samples_BN = np.zeros((rows, length), dtype=np.float32)
                for row, n in enumerate(batch):
                    samples_BN[row, : len(windows[n])] = windows[n] / np.float32(32768)
                frames_BFD = self.forward(torch.from_numpy(samples_BN).to(self.device))
                for row, n in enumerate(batch):
                    num_frames = -(-len(windows[n]) // self.frame_shift)
                    frames[n] = frames_BFD[row, :num_frames]
        return frames


def _checked(waveform: Union[np.ndarray, torch.Tensor]) -> np.ndarray:
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(
            f"expected the samples of one channel to tokenize, got an array of shape "
            f"{waveform.shape}"
        )
    if waveform.dtype == np.int16:
        return waveform
    if not np.isfinite(waveform).all():
        raise ValueError("the audio has samples that are NaN or infinite")
    return to_pcm16(waveform.astype(np.float32))


def weights_sha256(module: torch.nn.Module) -> str:
    """Hash a module's weights; "" if it has none, such as a log-mel frontend."""
    if next(module.parameters(), None) is None:
        return ""
    state = module.state_dict()
    return tensors_sha256((name, state[name]) for name in sorted(state))
