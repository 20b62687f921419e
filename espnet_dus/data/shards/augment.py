"""Reverberation and noise on the fly, by lhotse's own transforms."""

import random
from pathlib import Path
from typing import List, Optional, Sequence

from lhotse import CutSet, Recording
from lhotse.dataset.cut_transforms import CutMix, ReverbWithImpulseResponse

SUFFIXES = (".wav", ".flac", ".sph")


class Augmentation:
    """Changes the utterances of a batch, but not their lengths.

    Args:
        fs: Sampling rate of the speech (Hz).
        noise: A directory with recordings of noise, or None.
        noise_prob: Share of the utterances that get noise.
        noise_snr: Lowest and highest ratio of speech to noise (dB).
        rir: A directory with room impulse responses, or None.
        rir_prob: Share of the utterances that are reverberated.

    Raises:
        ValueError: A directory holds no audio.
    """

    def __init__(
        self,
        fs: int,
        noise: Optional[str] = None,
        noise_prob: float = 0.5,
        noise_snr: Sequence[float] = (5.0, 20.0),
        rir: Optional[str] = None,
        rir_prob: float = 0.3,
    ):
        self.noise_prob, self.rir_prob = noise_prob, rir_prob
        self.noise_snr = tuple(noise_snr)
        self.noise = None if noise is None else _recordings(noise, fs)
        self.rir = None if rir is None else _recordings(rir, fs)
        if self.noise is not None:
            self.noise = CutSet.from_cuts(noise.to_cut() for noise in self.noise)

    def __call__(self, cuts: CutSet, rng: random.Random) -> CutSet:
        """Change a batch; the same state of `rng` gives the same result."""
        if self.rir is not None:  # first: the noise was recorded in its own room
            cuts = ReverbWithImpulseResponse(
                self.rir, p=self.rir_prob, randgen=rng, preserve_id=True
            )(cuts)
        if self.noise is not None:
            cuts = CutMix(
                self.noise,
                snr=self.noise_snr,
                p=self.noise_prob,
                pad_to_longest=False,
                preserve_id=True,
                seed=rng,
                random_mix_offset=True,
            )(cuts)
        return cuts


def _recordings(directory: str, fs: int) -> List[Recording]:
    paths = sorted(p for p in Path(directory).rglob("*") if p.suffix in SUFFIXES)
    if not paths:
        raise ValueError(f"{directory}: no audio there ({', '.join(SUFFIXES)})")
    recordings = [
        Recording.from_file(path, recording_id=f"{n}-{path.stem}")
        for n, path in enumerate(paths)
    ]
    return [r if r.sampling_rate == fs else r.resample(fs) for r in recordings]
