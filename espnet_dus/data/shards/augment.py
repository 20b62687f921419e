"""Reverberation and noise on the fly, by lhotse's own transforms."""

import random
from pathlib import Path
from typing import List

from lhotse import CutSet, Recording
from lhotse.dataset.cut_transforms import CutMix, ReverbWithImpulseResponse

from espnet_dus.data.shards.config import StreamingConfig

SUFFIXES = (".wav", ".flac", ".sph")


class Augmentation:
    """Changes the utterances of a batch, but not their lengths.

    Args:
        fs: Sampling rate of the speech (Hz).
        config: The options of noise and room impulse responses.

    Raises:
        ValueError: A directory holds no audio.
    """

    def __init__(self, fs: int, config: StreamingConfig):
        self.config = config
        self.noises = self.rooms = None
        if config.noise is not None:
            recordings = _recordings(config.noise, fs)
            self.noises = CutSet.from_cuts(noise.to_cut() for noise in recordings)
        if config.rir is not None:
            self.rooms = _recordings(config.rir, fs)

    def __call__(self, cuts: CutSet, rng: random.Random) -> CutSet:
        """Change a batch; the same state of `rng` gives the same result."""
        if self.rooms is not None:  # first: the noise was recorded in its own room
            cuts = ReverbWithImpulseResponse(
                self.rooms, p=self.config.rir_prob, randgen=rng, preserve_id=True
            )(cuts)
        if self.noises is not None:
            cuts = CutMix(
                self.noises,
                snr=tuple(self.config.noise_snr),
                p=self.config.noise_prob,
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
