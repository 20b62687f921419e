"""WER and CER in the files and the layout of ESPnet's stage 13, without sclite."""

import functools
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence, Tuple, Union

import numpy as np

from espnet_dus.data.ctc_units import SPACE
from espnet_dus.io import read_scp, write_text

SCORES = ("wer", "cer")  # of words, of characters
CROSS_ENTROPY = "score_ce/result.json"  # beside score_wer and score_cer
RATES = ("Corr", "Sub", "Del", "Ins", "Err", "S.Err")


@dataclass(frozen=True)
class Utterance:
    """An aligned utterance: its tokens, and a chunk per run of equal operations."""

    utt: str
    speaker: str
    ref: Sequence[str]
    hyp: Sequence[str]
    chunks: Sequence

    @functools.cached_property
    def counts(self) -> List[int]:
        """Return the numbers of equal tokens, substitutions, deletions, insertions."""
        found: Counter = Counter()
        for c in self.chunks:
            num_ref = c.ref_end_idx - c.ref_start_idx
            num_hyp = c.hyp_end_idx - c.hyp_start_idx
            found[c.type] += max(num_ref, num_hyp)
        return [found[kind] for kind in ("equal", "substitute", "delete", "insert")]

    @property
    def errors(self) -> int:
        """Return the number of substitutions, deletions and insertions."""
        return sum(self.counts[1:])


def tokenize(text: str, score: str) -> List[str]:
    """Split a transcript as ESPnet does before sclite.

    Args:
        text: Transcript. Runs of white space count as one space.
        score: "wer" for words, or "cer" for characters, spaces among them.

    Returns:
        Tokens. A space is written `<space>`.
    """
    words = text.split()
    if score == "wer":
        return words
    return [SPACE if char == " " else char for char in " ".join(words)]


def align(
    ref: Dict[str, str], hyp: Dict[str, str], utt2spk: Dict[str, str], score: str
) -> List[Utterance]:
    """Align hypotheses to references with the fewest edits, in jiwer.

    Letter case is folded first: sclite, as ESPnet calls it, ignores case.

    Args:
        ref: Transcript by utterance id.
        hyp: Hypothesis by utterance id; an empty one is all deletions.
        utt2spk: Speaker by utterance id.
        score: "wer" or "cer".

    Returns:
        Aligned utterances in the order of `ref`.

    Raises:
        ValueError: The utterances of `ref`, `hyp` and `utt2spk` are not the same, or
            the references hold no words.
    """
    import jiwer

    for name, table in (("hypothesis", hyp), ("utt2spk", utt2spk)):
        missing = [utt for utt in ref if utt not in table]
        if missing:
            raise ValueError(f"no {name} for {_some(missing)} of the reference")
    additional = [utt for utt in hyp if utt not in ref]
    if additional:
        raise ValueError(f"no reference for {_some(additional)} of the hypotheses")
    if not any(text.split() for text in ref.values()):
        raise ValueError("the references hold no words: nothing to score against")

    refs = [tokenize(ref[utt].lower(), score) for utt in ref]
    hyps = [tokenize(hyp[utt].lower(), score) for utt in ref]
    output = jiwer.process_words(
        [" ".join(tokens) for tokens in refs], [" ".join(tokens) for tokens in hyps]
    )
    return [
        Utterance(utt, utt2spk[utt], *tokens_and_chunks)
        for utt, *tokens_and_chunks in zip(ref, refs, hyps, output.alignments)
    ]


def bootstrap_interval(
    errors: Sequence[int], lengths: Sequence[int]
) -> Tuple[float, float]:
    """Return the 95 % interval of an error rate by resampling utterances.

    Args:
        errors: Errors of each utterance.
        lengths: Reference tokens of each utterance.

    Returns:
        The 2.5 % and 97.5 % quantiles of the rate in percent, of 10,000 resamplings.
    """
    from scipy.stats import bootstrap

    def rate(errors, lengths, axis=-1):
        # a replicate of empty references only counts as one token
        return 100 * errors.sum(axis) / np.maximum(lengths.sum(axis), 1)

    data = np.asarray(errors), np.asarray(lengths)
    if len(data[0]) == 1:
        return (float(rate(*data)),) * 2
    interval = bootstrap(
        data,
        rate,
        paired=True,
        vectorized=True,
        n_resamples=10_000,
        batch=max(1, 10_000_000 // len(data[0])),  # 80 MB of indices
        method="percentile",
        rng=0,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def score_dir(
    ref: Union[str, Path],
    hyp_dir: Union[str, Path],
    cleaner: str = "none",
    nlsyms_txt: str = "none",
) -> Dict[str, Path]:
    """Score a decoding directory: `score_{wer,cer}/{ref.trn,hyp.trn,result.txt}`.

    Args:
        ref: `text` of the data directory that was decoded, with `utt2spk` beside it.
        hyp_dir: Decoding directory of these data, with the hypotheses in `text`.
        cleaner: ESPnet's text cleaner of the training, for the references.
        nlsyms_txt: File of symbols, one a line, that are words of a transcript and not
            scored, such as <noise>; none: all words are scored.

    Returns:
        The `result.txt` of each score.

    Raises:
        ValueError: See `align`, or a file is missing.
        RuntimeError: There is no such cleaner.
    """
    from espnet2.text.cleaner import TextCleaner

    ref, hyp_dir = Path(ref), Path(hyp_dir)
    clean = TextCleaner(None if cleaner == "none" else cleaner)
    symbols = {} if nlsyms_txt == "none" else read_scp(nlsyms_txt)
    tables = [
        {utt: clean(text) for utt, text in read_scp(ref).items()},
        read_scp(hyp_dir / "text"),
    ]
    for table in tables:
        for utt, text in table.items():
            table[utt] = " ".join(w for w in text.split() if w not in symbols)
    utt2spk = read_scp(ref.with_name("utt2spk"))
    results = {}
    for score in SCORES:
        try:
            utterances = align(*tables, utt2spk, score)
        except ValueError as error:
            raise ValueError(f"{ref} and {hyp_dir / 'text'}: {error}") from error
        directory = hyp_dir / f"score_{score}"
        for name, table in zip(("ref.trn", "hyp.trn"), tables):
            lines = (
                " ".join(tokenize(table[u.utt], score)) + f"\t({u.speaker}-{u.utt})\n"
                for u in utterances
            )
            write_text(directory / name, "".join(lines))
        path = results[score] = directory / "result.txt"
        write_text(path, result_text(utterances, directory / "hyp.trn"))
        result = read_result(path)
        logging.info(
            f"{score.upper()} {result['Err']} (95 % interval {result['low']} to "
            f"{result['high']}) on {result['Snt']:.0f} utterances: {path}"
        )
    return results


def result_text(utterances: Sequence[Utterance], title: Union[str, Path]) -> str:
    """Format scores as `sclite -o all` does: a table of speakers, then the alignments.

    Args:
        utterances: Aligned utterances.
        title: Heading of the table; sclite writes the hypothesis file's name.

    Returns:
        The text of `result.txt`. Below the table a line that starts with "#" has the
        interval.
    """
    speakers: Dict[str, List[Utterance]] = {}
    for utterance in utterances:
        speakers.setdefault(utterance.speaker, []).append(utterance)
    low, high = bootstrap_interval(
        [u.errors for u in utterances], [len(u.ref) for u in utterances]
    )
    parts = [
        "SYSTEM SUMMARY PERCENTAGES by SPEAKER".center(80).rstrip() + "\n",
        _table(speakers, utterances, str(title)),
        f"# Err 95 % interval {low:.1f} {high:.1f} (bootstrap over utterances)\n",
        "\t\tDUMP OF SYSTEM ALIGNMENT STRUCTURE\n",
    ]
    for number, (speaker, spoken) in enumerate(speakers.items()):
        parts.append(
            f"Speaker sentences {number:3d}:  {speaker}   #utts: {len(spoken)}"
        )
        parts.extend(_alignment(utterance) for utterance in spoken)
    return "\n".join(parts)


def read_result(path: Union[str, Path]) -> Dict[str, float]:
    """Read the totals of a `result.txt`, ours or sclite's.

    Args:
        path: The file.

    Returns:
        `Snt`, `Wrd`, `Corr`, `Sub`, `Del`, `Ins`, `Err`, `S.Err` (rates in percent),
        and `low` and `high`, the error rate's 95 % interval, if the file has it.

    Raises:
        ValueError: The file has no line `| Sum/Avg |`.
    """
    text = Path(path).read_text(encoding="utf-8")
    total = re.search(r"^\s*\|\s*Sum/Avg\s*\|(.*)$", text, re.MULTILINE)
    numbers = total.group(1).replace("|", " ").split() if total else []
    if len(numbers) < 8:
        raise ValueError(f"{path}: no line `| Sum/Avg |` with 8 numbers; score again")
    result = dict(zip(("Snt", "Wrd") + RATES, map(float, numbers)))
    interval = re.search(r"^# Err 95 % interval (\S+) (\S+)", text, re.MULTILINE)
    if interval:
        result["low"], result["high"] = map(float, interval.groups())
    return result


def _some(utts: Sequence[str], most: int = 5) -> str:
    more = f" and {len(utts) - most} more" if len(utts) > most else ""
    return f"utterance {', '.join(utts[:most])}{more}"


def _rates(utterances: Sequence[Utterance]) -> List[float]:
    words = sum(len(u.ref) for u in utterances)
    counts = [sum(numbers) for numbers in zip(*(u.counts for u in utterances))]
    counts.append(sum(counts[1:]))
    wrong = sum(u.errors > 0 for u in utterances)
    rates = [100 * count / words if words else 0.0 for count in counts]
    return rates + [100 * wrong / len(utterances)]


def _table(
    speakers: Dict[str, List[Utterance]], utterances: Sequence[Utterance], title: str
) -> str:
    rows = list(speakers.items()) + [("Sum/Avg", utterances)]
    name_width = max(7, *(len(name) for name, _ in rows))
    words = sum(len(u.ref) for u in utterances)
    snt_width = max(5, len(str(len(utterances))))
    wrd_width = max(5, len(str(words)))

    def line(name: str, snt: str, wrd: str, rates: Sequence[str]) -> str:
        return (
            f"| {name:<{name_width}} | {snt:>{snt_width}} {wrd:>{wrd_width}} |"
            + "".join(f"{rate:>6} " for rate in rates)
            + "|"
        )

    head = line("SPKR", "# Snt", "# Wrd", RATES)
    width = len(head) - 2
    lines = [
        "," + "-" * width + ".",
        f"|{title.center(width)}|",
        "|" + "-" * width + "|",
        head,
        "|" + re.sub(r"[^|]", "-", head[1:-1]).replace("|", "+") + "|",
    ]
    for name, spoken in rows:
        if spoken is utterances:
            lines.append("|" + "=" * width + "|")
        lines.append(
            line(
                name,
                str(len(spoken)),
                str(sum(len(u.ref) for u in spoken)),
                [f"{rate:.1f}" for rate in _rates(spoken)],
            )
        )
    lines.append("`" + "-" * width + "'")
    return "\n".join(" " * 6 + line for line in lines) + "\n"


def _alignment(utterance: Utterance) -> str:
    """Format an utterance as sclite does: errors in capitals, gaps as stars."""
    columns: List[Tuple[str, str, str]] = []
    for chunk in utterance.chunks:
        ref = utterance.ref[chunk.ref_start_idx : chunk.ref_end_idx]
        hyp = utterance.hyp[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            columns.extend((r, h, "") for r, h in zip(ref, hyp))
        elif chunk.type == "substitute":
            columns.extend((r.upper(), h.upper(), "S") for r, h in zip(ref, hyp))
        elif chunk.type == "delete":
            columns.extend((r.upper(), "*" * len(r), "D") for r in ref)
        else:
            columns.extend(("*" * len(h), h.upper(), "I") for h in hyp)
    padded = [[cell.ljust(max(map(len, col))) for cell in col] for col in columns]
    ref_row, hyp_row, marks = (
        " ".join(cells) for cells in (zip(*padded) if padded else ([], [], []))
    )
    return (
        f"id: ({utterance.speaker}-{utterance.utt})\n"
        f"Scores: (#C #S #D #I) {' '.join(map(str, utterance.counts))}\n"
        f"REF:  {ref_row}\nHYP:  {hyp_row}\nEval: {marks}\n"
    )
