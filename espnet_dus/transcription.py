"""A recording of any length to its transcript, as text, JSON or subtitles."""

import itertools
import json
from pathlib import Path
from typing import List, NamedTuple, Optional, Union

import numpy as np
import soundfile
import torch

from espnet_dus.model import Hypothesis
from espnet_dus.search.encoding import encode
from espnet_dus.search.segmentation import segments
from espnet_dus.search.speech2text import Speech2Text
from espnet_dus.search.timing import (
    WordTime,
    seconds_per_position,
    shift,
    srt,
    word_times,
)

SEGMENTS_AT_A_TIME = 8
FORMATS = ("txt", "json", "srt")


class Transcript(NamedTuple):
    """What was said in a recording.

    Attributes:
        file: The recording.
        seconds: Its length.
        text: The transcript.
        words: Each word with its place in the recording and, from 0 to 1, the
            probability that the LLM gives it. None where the model has no CTC head, to
            place words with.
    """

    file: str
    seconds: float
    text: str
    words: Optional[List[WordTime]]


def transcribe(speech2text: Speech2Text, path: Union[str, Path]) -> Transcript:
    """Transcribe a recording of any length and any sampling rate.

    Args:
        speech2text: The model.
        path: A file that libsndfile reads; of several channels the mean is taken.

    Raises:
        ValueError: The file holds values that are no numbers, or the model takes
            features, not audio.
        soundfile.LibsndfileError: It cannot be read.
    """
    if speech2text.fs is None:
        raise ValueError("this model was trained on features and takes no audio files")
    texts: List[str] = []
    words: List[WordTime] = []
    found = segments(path, speech2text.fs)
    for batch in itertools.batched(found, SEGMENTS_AT_A_TIME):
        speeches = [_long_enough(s.samples, speech2text.min_length) for s in batch]
        hypotheses = speech2text(speeches)
        for segment, speech, hypothesis in zip(batch, speeches, hypotheses):
            texts.append(hypothesis.text)
            if speech2text.model.ctc is not None:
                words += shift(_words(speech2text, speech, hypothesis), segment.start)
    return Transcript(
        str(path),
        soundfile.info(path).duration,
        " ".join(filter(None, texts)),
        None if speech2text.model.ctc is None else words,
    )


def render(transcript: Transcript, kind: str) -> str:
    """Write a transcript as text.

    Args:
        transcript: What to write.
        kind: One of `FORMATS`: the text alone, a line of JSON, or subtitles.

    Raises:
        ValueError: There are no word times to make subtitles of.
    """
    if kind == "txt":
        return f"{transcript.text}\n"
    if kind == "json":
        content = transcript._asdict()
        if transcript.words is not None:
            content["words"] = [word._asdict() for word in transcript.words]
        return json.dumps(content, ensure_ascii=False) + "\n"
    if transcript.words is None:
        raise ValueError(
            "subtitles need word times, and those a CTC head, which this model was "
            "trained without (no ctc_units in its config.yaml)"
        )
    return srt(transcript.words)


def _long_enough(samples: np.ndarray, fewest: int) -> np.ndarray:
    """Add silence to a segment that the subsampling would leave nothing of."""
    return np.pad(samples, (0, max(fewest - len(samples), 0)))


def _words(
    speech2text: Speech2Text, speech: np.ndarray, hypothesis: Hypothesis
) -> List[WordTime]:
    """Place the words of a hypothesis in its segment."""
    model = speech2text.model
    speech_1N = torch.as_tensor(speech)[None].to(speech2text.device)
    length_1 = torch.tensor([len(speech)], device=speech2text.device)
    encoded = encode(model, speech_1N, length_1, with_ctc=True)
    seconds = seconds_per_position(
        model.speech_embedder, model.frontend.hop_length, speech2text.fs
    )
    times = word_times(encoded.ctc_BSU[0], hypothesis.text, model.ctc_units, seconds)
    return [
        time._replace(confidence=confidence)
        for time, confidence in zip(times, hypothesis.confidence)
    ]
