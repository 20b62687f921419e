"""Utterances of audio or of speech tokens as lhotse's cuts.

Dimensions: F frames, K streams.
"""

import io
from typing import Tuple

import numpy as np
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.array import Array


def make_cut(
    key: str, path: str, fs: int, num_samples: int, text: str, speaker: str
) -> MonoCut:
    """Describe an utterance that is a whole audio file, as lhotse does.

    Args:
        key: The utterance's id.
        path: The file.
        fs: Its sampling rate (Hz).
        num_samples: Its length.
        text: The transcript.
        speaker: Who speaks.
    """
    cut = _cut(key, num_samples / fs, text, speaker)
    cut.recording = Recording(
        id=key,
        sources=[AudioSource(type="file", channels=[0], source=path)],
        sampling_rate=fs,
        num_samples=num_samples,
        duration=cut.duration,
    )
    return cut


def token_cut(
    key: str, seconds: float, text: str, speaker: str, tokens_FK: np.ndarray
) -> Tuple[MonoCut, bytes]:
    """Return an utterance of speech tokens as shards hold it.

    Args:
        key: The utterance's id.
        seconds: Duration of the audio.
        text: The transcript.
        speaker: Who speaks.
        tokens_FK: Integers (F, K), from 0.
    """
    cut = _cut(key, seconds, text, speaker)
    # Not a TemporalArray: lhotse would cut it at the duration, which may fall into the
    # last frame, and without repeats it has no fixed frame shift.
    cut.tokens = Array("shar", "", "", list(tokens_FK.shape))
    dtype = np.int16 if tokens_FK.max(initial=0) < 2**15 else np.int32
    file = io.BytesIO()
    np.save(file, tokens_FK.astype(dtype), allow_pickle=False)
    return cut, file.getvalue()


def _cut(key: str, seconds: float, text: str, speaker: str) -> MonoCut:
    said = SupervisionSegment(key, key, 0, seconds, text=text, speaker=speaker)
    return MonoCut(key, start=0, duration=seconds, channel=0, supervisions=[said])
