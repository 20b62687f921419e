"""Stage 12: transcribe a data set into ESPnet's result files."""

import logging
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import kaldiio
import numpy as np
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from espnet2.train.dataset import ESPnetDataset

from espnet_dus.data.audio import open_audio, read_file
from espnet_dus.data.dataset import check_speech_tokenizer, token_frames
from espnet_dus.data.lengths import FRAMES_PER_SECOND, takes_tokens, tokenizer_info
from espnet_dus.data.speech_tokens.tokenizer import Tokens
from espnet_dus.data.waveform import Channel
from espnet_dus.io import file_sha256, locked, not_empty, progress, read_scp
from espnet_dus.search.long_audio import join_segments
from espnet_dus.search.records import Decoded, Records
from espnet_dus.search.result import nothing
from espnet_dus.search.result_files import write_cost, write_results
from espnet_dus.search.speech2text import Speech2Text

Triples = Sequence[Tuple[str, str, str]]

UNREADABLE = (OSError, ValueError, KeyError, AssertionError, RuntimeError)


def decode(
    speech2text: Speech2Text,
    data_path_and_name_and_type: Triples,
    key_file: Optional[str],
    output_dir: str,
    batch_size: float,
    segment_seconds: float = 0.0,
    channel: Channel = "mean",
) -> None:
    """Transcribe the utterances of a key file.

    Writes `output_dir/1best_recog/{text,token,token_int,score}`, one such directory per
    n-best rank, `output_dir/hypotheses.jsonl` with the full results of each utterance,
    and `output_dir/decode.json` with the time of the decoding; with word times,
    `1best_recog/ctm` and `srt/UTTERANCE.srt`. An utterance that cannot be read or is
    too short is reported, gets an empty transcript (so it is scored, as deletions) and
    does not stop the others. An interrupted run resumes.

    Args:
        speech2text: The model.
        data_path_and_name_and_type: ESPnet's triple for `speech` and, for a model
            trained with text before the speech, the one for `text_before`.
        key_file: A table whose keys are to be transcribed; None: all of them.
        output_dir: Directory of the results.
        batch_size: Seconds of speech in a batch, padding included; halved on
            out-of-memory. A longer utterance is decoded alone.
        segment_seconds: Above 0: the utterances are long recordings, of any rate, which
            are cut at pauses into segments of at most this duration.
        channel: Of audio with several channels, see `open_audio`.

    Raises:
        ValueError: There is nothing to transcribe, an utterance is unknown, a line of a
            table has no value, or an option is for audio and the data are not audio.
    """
    triple, *_ = data_path_and_name_and_type
    paths = read_scp(triple[0], not_empty)
    keys = list(read_scp(key_file) if key_file else paths)
    if not keys:
        raise ValueError(f"{key_file or triple[0]}: no utterance to decode")
    if unknown := [key for key in keys if key not in paths]:
        raise ValueError(
            f"{key_file}: {len(unknown)} utterance(s) are not in {triple[0]}, the "
            f"first {unknown[0]}"
        )
    if batch_size <= 0:
        raise ValueError(f"batch_size: {batch_size}, expected seconds above 0")
    if channel != "mean" and triple[2] != "sound":
        raise ValueError(
            f"channel: {channel} has no effect: {triple[0]} holds {triple[2]}"
        )
    prompts = _prompts(data_path_and_name_and_type[1:], keys)
    if segment_seconds:
        if prompts:
            raise ValueError("segment_seconds: segments of recordings take no prompts")
        if triple[2] != "sound" or speech2text.fs is None:
            raise ValueError(
                f"segment_seconds: {triple[0]} holds {triple[2]}, expected sound"
            )
    with locked(output_dir):
        run = {  # what determines the results
            "model": speech2text.run,
            "segment_seconds": segment_seconds,
            "channel": channel,
            "data": [[*t, file_sha256(t[0])] for t in data_path_and_name_and_type],
        }
        records = Records(output_dir, run)
        waiting = [key for key in keys if key not in records.done]
        if segment_seconds:
            _decode_recordings(
                *(speech2text, paths, waiting, records),
                *(batch_size, segment_seconds, channel),
            )
            rate = speech2text.fs
        else:
            source = _Source(triple, paths, speech2text, channel)
            lengths = source.lengths(waiting)
            _decode_utterances(
                speech2text, source, lengths, records, batch_size, prompts
            )
            rate = source.rate
        done = {key: records.done[key] for key in keys}
        write_results(done, Path(output_dir), speech2text.search)
        checkpoint = speech2text.origin["checkpoint"]
        write_cost([*done.values()], Path(output_dir), rate, checkpoint)
        records.finish(keys)


def take_batch(waiting: List[str], lengths: Dict[str, int], budget: float) -> List[str]:
    """Return the first utterances that fit into a batch, at least one.

    Args:
        waiting: Utterances, the longest first.
        lengths: Their lengths.
        budget: Maximum length of the batch, padding included.
    """
    return waiting[: max(1, int(budget // max(lengths[waiting[0]], 1)))]


def _decode_utterances(
    speech2text: Speech2Text,
    source: "_Source",
    lengths: Dict[str, int],
    records: Records,
    batch_size: float,
    prompts: Dict[str, str],
) -> None:
    """Transcribe the utterances in `lengths` in batches; `prompts` may be empty."""
    # the longest first, so that a lack of memory shows at once
    waiting = sorted(lengths, key=lambda key: -lengths[key])
    budget = batch_size * source.rate
    bar = progress(what="decoding", total=len(waiting))
    while waiting:
        started = time.perf_counter()
        batch = take_batch(waiting, lengths, budget)
        samples, speeches = dict.fromkeys(batch, 0), {}
        for key in batch:
            try:
                speech = source.read(key)
                samples[key] = _length(speech)
                speech2text.check_length(speech)
                speeches[key] = speech
            except (*UNREADABLE, TooShortUttError) as error:
                logging.error(f"utterance {key} is not decoded: {error}")
        # ESPnet's RTF step reads this line and the next "best hypo", and the time
        # between them: that of the whole batch for its first utterance
        logging.info(f"speech length: {samples[batch[0]]}")
        results = {key: [nothing()] for key in batch}
        try:
            if speeches:
                before = [prompts[key] for key in speeches] if prompts else None
                found = speech2text.nbest([*speeches.values()], before)
                results.update(zip(speeches, found))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if len(batch) > 1:
                budget = max(samples.values()) * len(batch) / 2
                logging.warning(
                    f"out of memory with {len(batch)} utterances per batch; from here "
                    f"on a batch has {budget / source.rate:.1f} s of speech"
                )
                continue
            logging.error(f"utterance {batch[0]} is not decoded: {error}")
        seconds = (time.perf_counter() - started) / len(batch)
        records.add({k: Decoded(results[k], samples[k], seconds) for k in batch})
        for key in batch:
            if key != batch[0]:
                logging.info(f"speech length: {samples[key]}")
            best = results[key][0]
            logging.info(f"best hypo: {best.text} ({key})")
            if best.guards:
                logging.warning(
                    f"utterance {key}: a guard changed the transcript: "
                    f"{', '.join(best.guards)}"
                )
        del waiting[: len(batch)]
        bar.update(len(batch))


def _decode_recordings(
    speech2text: Speech2Text,
    paths: Dict[str, str],
    keys: List[str],
    records: Records,
    batch_size: float,
    segment_seconds: float,
    channel: Channel,
) -> None:
    """Transcribe long recordings, one after the other."""
    for key in keys:
        started = time.perf_counter()
        duration, found = 0.0, []
        try:
            with open_audio(paths[key], channel) as recording:
                duration = recording.seconds
            logging.info(f"speech length: {round(duration * speech2text.fs)}")
            for result in speech2text.transcribe_long(
                paths[key], segment_seconds, batch_size, channel=channel
            ):
                found.append(result)
                left = (time.perf_counter() - started) * (duration / result.end - 1)
                logging.info(
                    f"recording {key}: {result.end:.1f} of {duration:.1f} s, "
                    f"{left:.0f} s left: {result.hypothesis.text}"
                )
        except UNREADABLE as error:
            logging.error(
                f"recording {key}: decoding stopped after {len(found)} segments: "
                f"{error}"
            )
        hypothesis = join_segments(found)
        seconds = time.perf_counter() - started
        length = round(duration * speech2text.fs)
        records.add({key: Decoded([hypothesis], length, seconds)})
        logging.info(f"best hypo: {hypothesis.text} ({key})")


def _prompts(triples: Triples, keys: List[str]) -> Dict[str, str]:
    """Read the text before each utterance.

    Raises:
        ValueError: A triple is not one of `text_before`, or an utterance has no text.
    """
    prompts: Dict[str, str] = {}
    for path, name, kind in triples:
        if (name, kind) != ("text_before", "text"):
            raise ValueError(f"{path},{name},{kind}: expected ...,text_before,text")
        prompts = read_scp(path, not_empty)
        if missing := [key for key in keys if key not in prompts]:
            raise ValueError(
                f"{path} has no prompt of {len(missing)} utterance(s), the first "
                f"{missing[0]}"
            )
    return prompts


class _Source:
    """The utterances of a table: audio of any rate and layout, tokens or features.

    Attributes:
        rate: Samples or frames of a second.

    Raises:
        RuntimeError: Speech tokens were made with another tokenizer than the model's.
    """

    def __init__(
        self,
        triple: Tuple[str, str, str],
        paths: Dict[str, str],
        speech2text: Speech2Text,
        channel: Channel,
    ):
        self.table, self.name, self.kind = triple
        self.paths, self.fs, self.channel = paths, speech2text.fs, channel
        self.rate: float = self.fs or FRAMES_PER_SECOND
        self.info = self.run_lengths = None
        if self.kind == "sound":
            return
        self.dataset = ESPnetDataset([triple])
        if takes_tokens(speech2text.train_args):
            self.info = tokenizer_info(speech2text.train_args)
            self.rate = self.info.frames_per_second
            check_speech_tokenizer([triple], self.info)
            run_lengths = Path(self.table).with_name("run_lengths.scp")
            if self.info.remove_repeats and run_lengths.is_file():
                self.run_lengths = kaldiio.load_scp(str(run_lengths))

    def lengths(self, keys: List[str]) -> Dict[str, int]:
        """Return samples or frames of each utterance; 0 where it cannot be read."""
        lengths = {}
        for key in keys:
            try:
                if self.kind == "sound":
                    with open_audio(self.paths[key], self.channel) as recording:
                        lengths[key] = round(recording.seconds * self.fs)
                else:
                    lengths[key] = len(self.read(key))
            except UNREADABLE:
                lengths[key] = 0  # reported when it is decoded
        return lengths

    def read(self, key: str) -> Union[np.ndarray, Tokens]:
        """Read an utterance.

        Raises:
            Exception: One of `UNREADABLE`: it cannot be used.
        """
        if self.kind == "sound":
            return read_file(self.paths[key], self.fs, self.channel)
        features = self.dataset[key][1][self.name]
        if self.info is not None:
            runs = self.run_lengths and self.run_lengths[key]
            return Tokens(token_frames(features, self.info), runs)
        if not len(features) or not np.isfinite(features).all():
            raise ValueError("no frames, or NaN or infinite values")
        return features


def _length(speech: Union[np.ndarray, Tokens]) -> int:
    """Return the samples or frames of the audio, removed repeats included."""
    return speech.num_frames if isinstance(speech, Tokens) else len(speech)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether the device, or the computer, ran out of memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("not enough memory", "can't allocate memory")
    )
