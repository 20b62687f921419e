"""A recording to its transcript (text, JSON or subtitles), or to an answer."""

import json
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Union

from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError

from espnet_dus.data.audio import open_audio, read_file
from espnet_dus.data.waveform import Channel
from espnet_dus.search.long_audio import join_segments
from espnet_dus.search.result import Hypothesis
from espnet_dus.search.speech2text import Speech2Text
from espnet_dus.search.subtitles import srt


class Word(NamedTuple):
    """A word of a transcript."""

    word: str  # with its punctuation
    confidence: float  # its probability under the LLM, from 0 to 1
    start: Optional[float]  # seconds from the start of the recording
    end: Optional[float]  # both None without a CTC head


class Transcript(NamedTuple):
    """The transcript of a recording."""

    file: str  # path of the recording
    seconds: float  # duration of the recording
    text: str
    words: List[Word]


def transcribe(
    speech2text: Speech2Text,
    path: Union[str, Path],
    segment_seconds: float = 20.0,
    **options: Any,
) -> Transcript:
    """Transcribe a recording.

    Args:
        speech2text: The model. Words have times if its search has `word_times`.
        path: A file that libsndfile reads, of any length and sampling rate.
        segment_seconds: Maximum duration of the segments into which the recording is
            cut at pauses.
        options: Further arguments of `Speech2Text.transcribe_long`.

    Raises:
        ValueError: See `Speech2Text.transcribe_long`.
        AudioError: See `open_audio`.
    """
    with open_audio(path) as recording:
        seconds = recording.seconds
    results = speech2text.transcribe_long(path, segment_seconds, **options)
    hypothesis = join_segments(results)
    return Transcript(str(path), seconds, hypothesis.text, _words(hypothesis))


def answer(
    speech2text: Speech2Text,
    path: Union[str, Path],
    instruction: str,
    *options: Any,
    channel: Channel = "mean",
) -> str:
    """Follow an instruction on a recording of one utterance.

    Args:
        speech2text: The model.
        path: A file that libsndfile reads, of any sampling rate.
        instruction: What to do with it.
        options: Further arguments of `Speech2Text.ask`.
        channel: See `open_audio`.

    Raises:
        ValueError: The model takes features, the recording is too short, or
            `Speech2Text.ask` raises it.
        AudioError: See `open_audio`.
    """
    if speech2text.fs is None:
        raise ValueError("a recording is audio, but this model takes features")
    speech = read_file(path, speech2text.fs, channel)
    try:
        return speech2text.ask(speech, instruction, *options)
    except TooShortUttError as error:
        raise ValueError(f"{path}: {error}") from error


def check_kind(speech2text: Speech2Text, kind: str) -> None:
    """Check, before any work, that a model provides what `render` writes.

    Raises:
        ValueError: Subtitles need word times, which the model does not compute.
    """
    if kind == "srt" and not speech2text.search.word_times:
        raise ValueError(
            "subtitles need word times, which need a CTC head; this model was trained "
            "without one (no ctc_units in its config.yaml)"
        )


def render(transcript: Transcript, kind: str) -> str:
    """Return a transcript as text.

    Args:
        transcript: The transcript.
        kind: `txt`, `json` (one line) or `srt`, for which the words must have times.
    """
    if kind == "txt":
        return f"{transcript.text}\n"
    if kind == "json":
        words = [word._asdict() for word in transcript.words]
        content = {**transcript._asdict(), "words": words}
        line = json.dumps(content, ensure_ascii=False) + "\n"
        # the name of the file may not be UTF-8
        return line.encode("utf-8", "backslashreplace").decode()
    return srt(transcript.words)


def _words(hypothesis: Hypothesis) -> List[Word]:
    words = hypothesis.text.split()
    times = [(None, None)] * len(words)
    if hypothesis.word_times is not None:
        times = [(start, end) for _, start, end, _ in hypothesis.word_times]
    return [
        Word(word, confidence, start, end)
        for word, confidence, (start, end) in zip(words, hypothesis.confidence, times)
    ]
