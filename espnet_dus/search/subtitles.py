"""Word times as files: CTM and SRT."""

import textwrap
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Union

from espnet_dus.io import write_text
from espnet_dus.search.timing import WordTime

# Subtitles as broadcasters make them: two lines, from one to a few seconds.
LINE_CHARACTERS = 42
CUE_LINES = 2
MAX_CUE_SECONDS = 7.0
MIN_CUE_SECONDS = 1.0
MAX_CUE_PAUSE = 1.0


def write_ctm(path: Union[str, Path], times: Dict[str, Sequence[WordTime]]) -> None:
    """Write word times as NIST's CTM, which sclite and Kaldi read.

    A line is `utterance channel start duration word confidence`, in seconds; lines are
    sorted by utterance, then in time. The channel is always 1.

    Args:
        path: The file, written whole or not at all.
        times: Words by utterance.
    """
    lines = (
        f"{key} 1 {t.start:.3f} {t.end - t.start:.3f} {t.word} {t.confidence:.3f}\n"
        for key in sorted(times)
        for t in times[key]
    )
    write_text(path, "".join(lines))


def srt(times: Sequence[WordTime]) -> str:
    """Return word times as SubRip subtitles, which players and editors read.

    Args:
        times: Words of one recording; their confidences are not used.
    """
    cues = list(_cues(times))
    blocks = []
    for number, cue in enumerate(cues, 1):
        start, end = cue[0].start, cue[-1].end
        end = max(end, start + MIN_CUE_SECONDS)
        if number < len(cues):
            end = min(end, cues[number][0].start)
        text = "\n".join(_lines(cue))
        blocks.append(f"{number}\n{_clock(start)} --> {_clock(end)}\n{text}\n")
    return "\n".join(blocks)


def _cues(times: Sequence[WordTime]) -> Iterator[List[WordTime]]:
    """Split words into subtitles: by length, by duration and at pauses."""
    cue: List[WordTime] = []
    for time in times:
        if cue and (
            time.start - cue[-1].end > MAX_CUE_PAUSE
            or time.end - cue[0].start > MAX_CUE_SECONDS
            or len(_lines([*cue, time])) > CUE_LINES
        ):
            yield cue
            cue = []
        cue.append(time)
    if cue:
        yield cue


def _lines(cue: Sequence[WordTime]) -> List[str]:
    text = " ".join(time.word for time in cue)
    return textwrap.wrap(
        text, LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False
    )


def _clock(seconds: float) -> str:
    """Format a time as in SubRip: hours:minutes:seconds,milliseconds."""
    rest, milliseconds = divmod(round(seconds * 1000), 1000)
    rest, seconds = divmod(rest, 60)
    hours, minutes = divmod(rest, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d},{milliseconds:03d}"
