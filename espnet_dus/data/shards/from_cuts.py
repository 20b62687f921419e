"""Audio shards of lhotse's cuts: FLAC files are copied, other audio becomes FLAC."""

import io
from itertools import batched
from pathlib import Path
from typing import Iterable, Iterator, Sequence, Tuple

import soundfile
from lhotse import MonoCut
from lhotse.shar.utils import to_shar_placeholder

from espnet_dus.data.dataset import BadUtterances
from espnet_dus.data.shards.cuts import make_cut
from espnet_dus.data.shards.shar_writer import Stored
from espnet_dus.data.waveform import to_pcm16

SHUFFLE_SEED = 0  # of the order in which utterances are written


def in_blocks(utterances: Iterable, shard_size: int) -> Iterator[Sequence]:
    """Group utterances into the blocks of `write_blocks`.

    Raises:
        ValueError: `shard_size` is out of range.
    """
    if shard_size < 1:
        raise ValueError(f"expected a shard_size from 1 on, got {shard_size}")
    return batched(utterances, shard_size)


def store_audio(cuts: Iterable[MonoCut], bad: BadUtterances, fs: int) -> Stored:
    """Yield the cuts whose audio can be read, as FLAC at rate `fs` (Hz).

    The `store` of `write_blocks`.
    """
    for cut in cuts:
        try:
            audio, num_samples = _flac(cut, fs)
        except Exception as error:  # lhotse's backends raise errors of any type
            bad.add(cut.id, error)
            continue
        said = cut.supervisions[0]
        cut = make_cut(cut.id, "", fs, num_samples, said.text, said.speaker)
        cut.recording = to_shar_placeholder(cut.recording)
        yield cut, audio


def _flac(cut: MonoCut, fs: int) -> Tuple[bytes, int]:
    """Return a cut's audio as FLAC, unchanged if it is a FLAC file; and its samples.

    Raises:
        Exception: It cannot be read.
    """
    recording = cut.recording
    if (
        recording.sources[0].type == "file"
        and recording.sources[0].source.endswith(".flac")
        and recording.num_channels == 1
        and recording.sampling_rate == fs
        and not recording.transforms
        and (cut.start, cut.duration) == (0, recording.duration)
    ):
        audio = Path(recording.sources[0].source).read_bytes()
        with soundfile.SoundFile(io.BytesIO(audio)) as file:
            if file.frames != recording.num_samples:
                raise ValueError(
                    f"{file.frames} samples, {recording.num_samples} were announced"
                )
            file.seek(-1, soundfile.SEEK_END)
            file.read()  # fails if it was cut short
            return audio, file.frames
    samples = cut.resample(fs).load_audio()
    if len(samples) != 1:
        raise ValueError(f"{len(samples)} channels; expected mono")
    encoded = io.BytesIO()
    soundfile.write(encoded, to_pcm16(samples[0]), fs, format="flac", subtype="PCM_16")
    return encoded.getvalue(), samples.shape[1]
