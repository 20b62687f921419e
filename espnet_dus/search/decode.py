"""Stage 12: transcribe a data set into ESPnet's result files."""

import hashlib
import logging
import shutil
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import soundfile
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from espnet2.train.dataset import ESPnetDataset

from espnet_dus.data.dataset import check_sampling_rate
from espnet_dus.data.lengths import FRAMES_PER_SECOND
from espnet_dus.io import file_name, read_scp, write_scp
from espnet_dus.search.long_audio import join
from espnet_dus.search.records import Record, Records
from espnet_dus.search.result import Hypothesis
from espnet_dus.search.speech2text import Speech2Text
from espnet_dus.search.subtitles import write_ctm, write_srt
from espnet_dus.search.timing import WordTime

Triples = Sequence[Tuple[str, str, str]]

FIELDS = ("text", "token", "token_int", "score")


def decode(
    speech2text: Speech2Text,
    data_path_and_name_and_type: Triples,
    key_file: Optional[str],
    output_dir: str,
    batch_size: float,
    segment_seconds: float = 0.0,
) -> None:
    """Transcribe the utterances of a key file.

    Writes `output_dir/1best_recog/{text,token,token_int,score}`, as many such
    directories as there are n-best hypotheses, and `output_dir/hypotheses.jsonl` with
    all there is to know of each; with word times, `1best_recog/ctm` and, for each
    utterance, `srt/UTTERANCE.srt`. An utterance that cannot be read or is too short is
    reported, gets an empty transcript (so it is scored, as deletions) and does not stop
    the others. A run that was killed goes on where it was.

    Args:
        speech2text: The model.
        data_path_and_name_and_type: ESPnet's triple for `speech`.
        key_file: A table whose keys are to be transcribed; None: all of them.
        output_dir: Where the results go.
        batch_size: Seconds of speech at a time, padding included; halved whenever the
            memory does not suffice. An utterance longer than that goes alone.
        segment_seconds: Above 0: the utterances are long recordings, of any rate, to be
            cut at pauses into segments of at most so many seconds.

    Raises:
        ValueError: There is nothing to transcribe, the sampling rate is wrong, or long
            recordings are no audio.
    """
    keys = list(read_scp(key_file or data_path_and_name_and_type[0][0]))
    if not keys:
        raise ValueError(f"{key_file}: no utterance to decode")
    if batch_size <= 0:
        raise ValueError(f"batch_size: {batch_size}, expected seconds above 0")
    run = _run(speech2text, data_path_and_name_and_type, segment_seconds)
    records = Records(output_dir, run)
    if segment_seconds:
        _decode_recordings(
            speech2text,
            data_path_and_name_and_type[0],
            [key for key in keys if key not in records.done],
            records,
            batch_size,
            segment_seconds,
        )
        _finish(records, keys, output_dir, speech2text)
        return
    rate = speech2text.fs or FRAMES_PER_SECOND
    if speech2text.fs is not None:
        check_sampling_rate(data_path_and_name_and_type, rate)
    dataset = ESPnetDataset(list(data_path_and_name_and_type))
    lengths = _lengths(
        dataset,
        data_path_and_name_and_type[0],
        [key for key in keys if key not in records.done],
    )
    # the longest first: what does not fit into memory shows at once
    waiting = sorted(lengths, key=lambda key: -lengths[key])
    budget = batch_size * rate
    started, total = time.perf_counter(), sum(lengths.values())
    while waiting:
        batch_started = time.perf_counter()
        batch = take_batch(waiting, lengths, budget)
        speeches = _read(dataset, batch)
        samples = {key: 0 if s is None else len(s) for key, s in speeches.items()}
        # ESPnet's RTF step reads this line and the next "best hypo", and the time that
        # has passed between them: the whole batch's for its first utterance
        logging.info(f"speech length: {samples[batch[0]]}")
        try:
            results = _transcribe(speech2text, speeches)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if len(batch) > 1:
                budget = max(samples.values()) * len(batch) / 2
                logging.warning(
                    f"out of memory with {len(batch)} utterances at a time; batches "
                    f"have {budget / rate:.1f} s of speech from here on"
                )
                continue
            logging.error(f"utterance {batch[0]} is not decoded: {error}")
            results = {batch[0]: [_no_result()]}
        seconds = (time.perf_counter() - batch_started) / len(batch)
        records.add({k: Record(results[k], samples[k], seconds) for k in batch})
        for key in batch:
            if key != batch[0]:
                logging.info(f"speech length: {samples[key]}")
            best = results[key][0]
            logging.info(f"best hypo: {best.text} ({key})")
            if best.guards:
                logging.warning(
                    f"utterance {key} was cut short by a guard: "
                    f"{', '.join(best.guards)}"
                )
        del waiting[: len(batch)]
        elapsed = time.perf_counter() - started
        left = sum(lengths[key] for key in waiting)
        logging.info(
            f"{len(keys) - len(waiting)} of {len(keys)} utterances in {elapsed:.0f} s, "
            f"{elapsed * left / max(total - left, 1):.0f} s left"
        )
    _finish(records, keys, output_dir, speech2text)


def take_batch(waiting: List[str], lengths: Dict[str, int], budget: float) -> List[str]:
    """Give the first utterances that fit into a batch: at least one.

    Args:
        waiting: Utterances, the longest first.
        lengths: Of each.
        budget: The most that the batch, padded to its longest, may have in all.
    """
    return waiting[: max(1, int(budget // max(lengths[waiting[0]], 1)))]


def _decode_recordings(
    speech2text: Speech2Text,
    triple: Tuple[str, str, str],
    keys: List[str],
    records: Records,
    batch_size: float,
    segment_seconds: float,
) -> None:
    """Transcribe long recordings, one after the other."""
    path, _, kind = triple
    if kind != "sound" or speech2text.fs is None:
        raise ValueError(f"segment_seconds: {path} holds {kind}, expected sound")
    paths = read_scp(path)
    for key in keys:
        started = time.perf_counter()
        duration, found = 0.0, []
        try:
            duration = soundfile.info(paths[key]).duration
            logging.info(f"speech length: {round(duration * speech2text.fs)}")
            for result in speech2text.transcribe_long(
                paths[key], segment_seconds, batch_size
            ):
                found.append(result)
                left = (time.perf_counter() - started) * (duration / result.end - 1)
                logging.info(
                    f"recording {key}: {result.end:.1f} of {duration:.1f} s, "
                    f"{left:.0f} s left: {result.hypothesis.text}"
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            logging.error(
                f"recording {key} is decoded up to its segment {len(found)} and no "
                f"further: {error}"
            )
        hypothesis = join(found)
        seconds = time.perf_counter() - started
        length = round(duration * speech2text.fs)
        records.add({key: Record([hypothesis], length, seconds)})
        logging.info(f"best hypo: {hypothesis.text} ({key})")


def _run(speech2text: Speech2Text, triples: Triples, segment_seconds: float) -> Dict:
    """Tell what decides on the results."""
    return {
        "model": speech2text.run,
        "segment_seconds": segment_seconds,
        "data": [
            [path, name, kind, hashlib.sha256(Path(path).read_bytes()).hexdigest()]
            for path, name, kind in triples
        ],
    }


def _lengths(
    dataset: ESPnetDataset, triple: Tuple[str, str, str], keys: List[str]
) -> Dict[str, int]:
    """Give samples or frames of each utterance; 0 where that cannot be read."""
    path, name, kind = triple
    paths = read_scp(path) if kind == "sound" else {}
    lengths = {}
    for key in keys:
        try:
            if kind == "sound":
                lengths[key] = soundfile.info(paths[key]).frames
            else:
                lengths[key] = len(dataset[key][1][name])
        except (OSError, ValueError, KeyError, AssertionError, RuntimeError):
            lengths[key] = 0  # reported where it is to be decoded
    return lengths


def _read(dataset: ESPnetDataset, keys: List[str]) -> Dict[str, Optional[np.ndarray]]:
    """Read utterances; None stands for one that cannot be used."""
    speeches: Dict[str, Optional[np.ndarray]] = {}
    for key in keys:
        try:
            speeches[key] = dataset[key][1]["speech"]
            if not len(speeches[key]) or not np.isfinite(speeches[key]).all():
                raise ValueError("no samples, or NaN or infinite ones")
        except (OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
            logging.error(f"utterance {key} is not decoded: {error}")
            speeches[key] = None
    return speeches


def _no_result() -> Hypothesis:
    return Hypothesis("", [], [], 0.0)


def _transcribe(
    speech2text: Speech2Text, speeches: Dict[str, Optional[np.ndarray]]
) -> Dict[str, List[Hypothesis]]:
    """Transcribe a batch; the utterances that are too short get nothing."""
    results = {key: [_no_result()] for key in speeches}
    good = []
    for key, speech in speeches.items():
        if speech is None:
            continue
        try:
            speech2text.check_length(speech)
            good.append(key)
        except TooShortUttError as error:
            logging.error(f"utterance {key} is not decoded: {error}")
    if good:
        results.update(zip(good, speech2text.nbest([speeches[key] for key in good])))
    return results


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether a device's memory, or the computer's, did not suffice."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("not enough memory", "can't allocate memory")
    )


def _finish(
    records: Records, keys: List[str], output_dir: str, speech2text: Speech2Text
) -> None:
    """Write the tables, and what the decoding took."""
    # Another run may have left times, or more hypotheses, that belong to other texts.
    for directory in [*Path(output_dir).glob("*best_recog"), Path(output_dir) / "srt"]:
        shutil.rmtree(directory, ignore_errors=True)
    for n in range(speech2text.search.nbest):
        found = {
            k: records.done[k].nbest[n] for k in keys if n < len(records.done[k].nbest)
        }
        for field in FIELDS:
            table = {}
            for key, hypothesis in found.items():
                value = getattr(hypothesis, field)
                words = value if isinstance(value, list) else str(value).split()
                table[key] = " ".join(map(str, words))
            write_scp(Path(output_dir) / f"{n + 1}best_recog" / field, table)
        if speech2text.search.word_times:
            times = {
                key: [WordTime(*time) for time in hypothesis.word_times or []]
                for key, hypothesis in found.items()
            }
            write_ctm(Path(output_dir) / f"{n + 1}best_recog" / "ctm", times)
            if n == 0:
                for key in times:
                    path = Path(output_dir) / "srt" / file_name(key, ".srt")
                    write_srt(path, times[key])
    done = [records.done[key] for key in keys]
    passes = sum(record.nbest[0].llm_passes for record in done) / len(done)
    logging.info(f"{passes:.1f} LLM passes for an utterance")
    if speech2text.fs is not None:  # the comparison of arms reads this line
        samples = sum(record.length for record in done)
        logging.info(
            f"decoded {len(keys)} utterances: {samples / speech2text.fs:.2f} s of "
            f"audio in {sum(record.seconds for record in done):.2f} s"
        )
    records.finish()
