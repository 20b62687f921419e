"""A recording of any length to its transcript: text, JSON or subtitles."""

import json
from pathlib import Path
from typing import List, NamedTuple, Optional, Union

from espnet_dus.data.audio import open_audio
from espnet_dus.search.long_audio import join_segments
from espnet_dus.search.result import Hypothesis
from espnet_dus.search.speech2text import Speech2Text
from espnet_dus.search.subtitles import srt
from espnet_dus.search.timing import WordTime


class Word(NamedTuple):
    """A word of a transcript.

    Attributes:
        word: As it stands there.
        confidence: The probability that the LLM gives it, from 0 to 1.
        start: In seconds from the start of the recording; None where the model has no
            CTC head, to place words with.
        end: Likewise.
    """

    word: str
    confidence: float
    start: Optional[float]
    end: Optional[float]


class Transcript(NamedTuple):
    """What was said in a recording.

    Attributes:
        file: The recording.
        seconds: Its length.
        text: The transcript.
        words: Its words.
    """

    file: str
    seconds: float
    text: str
    words: List[Word]


def transcribe(
    speech2text: Speech2Text, path: Union[str, Path], segment_seconds: float = 20.0
) -> Transcript:
    """Transcribe a recording.

    Args:
        speech2text: The model; whether words have times is its search's `word_times`.
        path: A file that libsndfile reads, of any length and sampling rate.
        segment_seconds: It is cut at pauses into segments of at most so many seconds.

    Raises:
        ValueError: See `Speech2Text.transcribe_long`.
        AudioError: See `open_audio`.
    """
    with open_audio(path) as recording:
        seconds = recording.seconds
    hypothesis = join_segments(speech2text.transcribe_long(path, segment_seconds))
    return Transcript(str(path), seconds, hypothesis.text, _words(hypothesis))


def check_kind(speech2text: Speech2Text, kind: str) -> None:
    """Check that a model can give what `render` is to write, before it sets to work.

    Raises:
        ValueError: Subtitles are asked for, and it gives no word times.
    """
    if kind == "srt" and not speech2text.search.word_times:
        raise ValueError(
            "subtitles need word times, and those a CTC head, which this model was "
            "trained without (no ctc_units in its config.yaml)"
        )


def render(transcript: Transcript, kind: str) -> str:
    """Write a transcript down.

    Args:
        transcript: What to write.
        kind: `txt`, `json` (one line) or `srt`, for which the words must have times.
    """
    if kind == "txt":
        return f"{transcript.text}\n"
    if kind == "json":
        words = [word._asdict() for word in transcript.words]
        content = {**transcript._asdict(), "words": words}
        return json.dumps(content, ensure_ascii=False) + "\n"
    return srt(
        [WordTime(w.word, w.start, w.end, w.confidence) for w in transcript.words]
    )


def _words(hypothesis: Hypothesis) -> List[Word]:
    words = hypothesis.text.split()
    times = [(None, None)] * len(words)
    if hypothesis.word_times is not None:
        times = [(start, end) for _, start, end, _ in hypothesis.word_times]
    return [
        Word(word, confidence, start, end)
        for word, confidence, (start, end) in zip(words, hypothesis.confidence, times)
    ]
