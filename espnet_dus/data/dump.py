"""The work of a process of stage 3: reads a block of utterances, writes its files."""

import functools
import hashlib
import io
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import kaldiio
import numpy as np
import soundfile

from espnet_dus.data.audio import AudioError, read_audio
from espnet_dus.data.audio_ark import split_location
from espnet_dus.data.data_dir import Utterance, explain_write_errors
from espnet_dus.data.journal import Done, Record
from espnet_dus.data.parallel import groups
from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.data.waveform import Channel, to_pcm16
from espnet_dus.io import atomic_path, file_name

# The frontend of the recipes: training on `raw` computes the same features itself. Not
# centred: no frame reaches beyond the signal, so features do not depend on batch mates.
FBANK_CONF = dict(n_fft=512, win_length=400, hop_length=160, n_mels=80, center=False)

Faults = Dict[str, str]
Waveforms = Iterator[Tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Dump:
    """What is written where.

    Attributes:
        out_dir: The dump directory.
        feats_type: `raw`, `fbank` or `tokens`.
        fs: Sampling rate in Hz.
        audio_format: `flac` or `wav`, for `raw`.
        allow_pipes: Whether commands in wav.scp are run.
        channel: See `open_audio`.
        tokenizer_dir: The speech tokenizer's directory, for `tokens`.
        tokenizer: Its description.
    """

    out_dir: Path
    feats_type: str
    fs: int
    audio_format: str
    allow_pipes: bool
    channel: Channel
    tokenizer_dir: Optional[Path] = None
    tokenizer: Optional[TokenizerInfo] = None

    def digests(self, utterances: List[Utterance]) -> Dict[str, str]:
        """Digest the sources (path, size, time of change) and options by utterance."""
        kind = self.audio_format if self.feats_type == "raw" else str(FBANK_CONF)
        if self.tokenizer is not None:
            kind = f"tokens {self.tokenizer.sha256}"
        if self.channel is not None:
            kind += f" channel {self.channel}"

        @functools.lru_cache(maxsize=1024)  # segments share their recording
        def source(wav: str) -> Tuple:
            try:
                status = os.stat(split_location(wav)[0])
            except OSError:  # a command, or no such file, which reading will say
                return (wav,)
            return wav, status.st_size, status.st_mtime_ns

        return {
            utterance.id: hashlib.blake2b(
                repr((source(utterance.wav), utterance[2:], self.fs, kind)).encode(),
                digest_size=8,
            ).hexdigest()
            for utterance in utterances
        }


def dump_block(
    block: Tuple[int, Sequence[Utterance]], dump: Dump
) -> Tuple[Done, Faults]:
    """Dump utterances; their records still lack the digest."""
    number, utterances = block
    faults: Faults = {}
    waveforms = _read(utterances, dump, faults)
    if dump.feats_type == "raw":
        return _dump_audio(waveforms, dump), faults
    return _dump_arks(waveforms, number, dump), faults


def _read(utterances: Sequence[Utterance], dump: Dump, faults: Faults) -> Waveforms:
    """Read utterances as 16-bit samples, the same for audio and features."""
    for utterance in utterances:
        try:
            samples = to_pcm16(
                read_audio(utterance, dump.fs, dump.allow_pipes, dump.channel)
            )
            if dump.feats_type == "fbank" and len(samples) < FBANK_CONF["n_fft"]:
                raise AudioError(
                    f"utterance {utterance.id}: {utterance.wav}: {len(samples)} "
                    "samples are too few for one feature frame"
                )
        except AudioError as error:
            faults[utterance.id] = str(error)
            continue
        yield utterance.id, samples


def _dump_audio(waveforms: Waveforms, dump: Dump) -> Done:
    done = {}
    for key, samples in waveforms:
        # 256 folders, since file systems dislike millions of files in one.
        folder = hashlib.blake2b(key.encode(), digest_size=1).hexdigest()
        location = f"data/{folder}/{file_name(key, f'.{dump.audio_format}')}"
        # Encoded in memory: libsndfile does not say that a disk is full.
        encoded = io.BytesIO()
        soundfile.write(
            encoded, samples, dump.fs, format=dump.audio_format, subtype="PCM_16"
        )
        path = dump.out_dir / location
        with explain_write_errors(path), atomic_path(path) as temporary:
            size = temporary.write_bytes(encoded.getvalue())
        done[key] = Record(len(samples), 0, size, location)
    return done


def _dump_arks(waveforms: Waveforms, number: int, dump: Dump) -> Done:
    done, streams, names = {}, 1, ["feats"]
    if dump.tokenizer is not None:
        streams = dump.tokenizer.streams
        names += ["run_lengths"] * dump.tokenizer.remove_repeats
    arks = [f"data/{name}.{number}.ark" for name in names]
    with ExitStack() as stack:
        files = []
        for ark in reversed(arks):  # entered last, renamed first: the features
            path = dump.out_dir / ark
            stack.enter_context(explain_write_errors(path))
            temporary = stack.enter_context(atomic_path(path))
            files.insert(0, stack.enter_context(temporary.open("wb")))
        for group in groups(waveforms, dump.fs):
            vectors = _encode([samples for _, samples in group], dump)
            for (key, samples), arrays in zip(group, vectors):
                offset = files[0].tell() + len(f"{key} ".encode())
                for file, array in zip(files, arrays):
                    kaldiio.save_ark(file, {key: array})
                frames = len(arrays[0]) // streams
                done[key] = Record(len(samples), frames, 0, f"{arks[0]}:{offset}")
        size = files[0].tell()
    if not done:
        for ark in arks:
            (dump.out_dir / ark).unlink()
    return {key: record._replace(size=size) for key, record in done.items()}


def _encode(
    waveforms: List[np.ndarray], dump: Dump
) -> Iterator[Tuple[np.ndarray, ...]]:
    """Turn 16-bit samples into what the arks hold."""
    if dump.tokenizer is not None:
        from espnet_dus.data.speech_tokens.tokenizer import tokenizer_of_process

        tokenizer = tokenizer_of_process(dump.tokenizer_dir, dump.tokenizer.sha256)
        for tokens in tokenizer.tokenize(waveforms):
            yield tokens.tokens_FK.reshape(-1), tokens.run_lengths_F
        return
    import torch

    for samples in waveforms:
        speech = torch.from_numpy(samples).float()[None] / 32768.0
        with torch.no_grad():
            features, _ = _frontend(dump.fs)(speech, torch.tensor([len(samples)]))
        yield (features[0].numpy(),)


@functools.lru_cache(maxsize=1)
def _frontend(fs: int) -> Callable:
    from espnet2.asr.frontend.default import DefaultFrontend  # torch

    return DefaultFrontend(fs=fs, **FBANK_CONF).eval()
