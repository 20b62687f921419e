"""Stage 3: dump audio, the frontend's features or speech tokens, at one rate.

The layout is that of ESPnet's stage 3. The journal `.done` lists every finished
utterance, so that a second run processes only missing or changed ones.
"""

import functools
import hashlib
import io
import logging
import os
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import batched
from pathlib import Path
from typing import (
    Callable,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import kaldiio
import numpy as np
import soundfile

from espnet_dus.data.audio import AudioError, Channel, parse_fs, read_audio, to_pcm16
from espnet_dus.data.data_dir import (
    DataDir,
    Utterance,
    explain_write_errors,
    first_few,
    parse_channel,
)
from espnet_dus.data.parallel import groups, run_blocks
from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.io import (
    atomic_path,
    file_name,
    locked,
    progress,
    write_scp,
    write_text,
)

# The frontend of the recipes: training on `raw` computes the same features itself. Not
# centred: no frame reaches beyond the signal, so features do not depend on batch mates.
FBANK_CONF = dict(n_fft=512, win_length=400, hop_length=160, n_mels=80, center=False)
BLOCK_SIZE = 1000  # utterances per ark; an interruption loses at most one block
FEATS_TYPES = ("raw", "fbank", "tokens")


class Record(NamedTuple):
    """One finished utterance, as a line of the journal.

    Attributes:
        num_samples: Length in samples at the dump's rate.
        num_frames: Length in feature frames or tokens, 0 for audio.
        size: Bytes of the file that holds it.
        location: The file below the dump directory; in an ark, with `:offset`.
        digest: Digest of all that the result depends on. It is the last field, so that
            a truncated line never looks complete.
    """

    num_samples: int
    num_frames: int
    size: int
    location: str
    digest: str = ""

    @property
    def file(self) -> str:
        """The file below the dump directory."""
        return self.location.rsplit(":", 1)[0]


Done = Dict[str, Record]
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
                status = os.stat(wav)
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


def format_data(
    data_dir: Union[str, Path],
    out_dir: Union[str, Path],
    feats_type: str = "raw",
    fs: Union[int, str] = 16000,
    audio_format: str = "flac",
    nj: int = 1,
    max_bad_utterances: int = 0,
    allow_pipes: bool = False,
    channel: Channel = None,
    speech_tokenizer: Optional[Union[str, Path]] = None,
) -> None:
    """Dump a data directory.

    Segments are cut, speeds applied, rates converted. `raw` writes 16-bit audio files
    and wav.scp; `fbank` writes log-mel features (frames x 80, float32) and feats.scp,
    and no audio. `tokens` writes speech tokens (int32 vectors of frames x streams,
    frame by frame) and feats.scp, and run_lengths.scp where repeats are removed. All
    write utt2num_samples. Faulty audio is listed in full in `out_dir`/bad_utterances.

    Args:
        data_dir: The Kaldi data directory.
        out_dir: The dump directory.
        feats_type: `raw`: audio files; `fbank`: the frontend's log-mel features as
            Kaldi ark; `tokens`: speech tokens as Kaldi ark.
        fs: Sampling rate in Hz, such as 16000 or 16k.
        audio_format: `flac` or `wav`, for `raw`.
        nj: Number of processes.
        max_bad_utterances: Number of utterances with faulty audio that may be left out
            with a warning.
        allow_pipes: Whether to run the commands in wav.scp ('... |'). They run with
            your permissions: only for data that you trust.
        channel: The channel to take of audio with several: an index from 0, or `mean`
            for the mean of all; None: several channels are a fault.
        speech_tokenizer: A tokenizer directory, for `tokens`.

    Raises:
        ValueError: The data directory is not valid, an option is out of range, or too
            many utterances are faulty.
        OSError: A file cannot be written.
    """
    if feats_type not in FEATS_TYPES or audio_format not in ("flac", "wav"):
        raise ValueError(
            f"expected feats_type {', '.join(FEATS_TYPES)} and audio_format flac or "
            f"wav, got {feats_type} and {audio_format}"
        )
    if (feats_type == "tokens") != (speech_tokenizer is not None):
        raise ValueError("feats_type tokens and a speech_tokenizer go together")
    fs, channel = parse_fs(fs), parse_channel(channel)
    if nj < 1:
        raise ValueError(f"expected a number of processes (nj) from 1 on, got {nj}")
    out_dir = Path(out_dir)
    if Path(data_dir).resolve() == out_dir.resolve():
        raise ValueError(f"{out_dir}: cannot be both the input and the output")
    data = DataDir.read(data_dir)
    data.validate(empty_text=True)
    dump = Dump(out_dir, feats_type, fs, audio_format, allow_pipes, channel)
    if speech_tokenizer is not None:
        from espnet_dus.data.speech_tokens.encoders import num_jobs  # torch

        info = TokenizerInfo.read(speech_tokenizer)
        if info.sampling_rate != fs:
            raise ValueError(
                f"the speech tokenizer {info.name} takes audio of {info.sampling_rate} "
                f"Hz, not {fs} (--fs)"
            )
        dump = replace(dump, tokenizer_dir=Path(speech_tokenizer), tokenizer=info)
        nj = num_jobs(nj)
    with locked(out_dir):
        _dump(data, dump, nj, max_bad_utterances)


def _dump(data: DataDir, dump: Dump, nj: int, max_bad_utterances: int) -> None:
    """Dump what an earlier run has not."""
    out_dir, utterances = dump.out_dir, data.utterances()
    digests = dump.digests(utterances)
    journal = out_dir / ".done"
    recorded = _read_journal(journal)
    done = _still_good(recorded, digests, out_dir)
    pending = [utterance for utterance in utterances if utterance.id not in done]
    logging.info("%s: %d to do, %d done before", out_dir, len(pending), len(done))
    faults: Faults = {}
    if pending:
        # As long as `text` exists, the directory is whole.
        (out_dir / "text").unlink(missing_ok=True)
        for stray in (out_dir / "data").rglob(".*.tmp.*"):  # of a killed run
            stray.unlink()
        first_ark = 1 + max(map(_ark_number, recorded.values()), default=0)
        # Neighbours stay together, and no process idles for long.
        size = min(BLOCK_SIZE, -(-len(pending) // (4 * nj)))
        blocks = enumerate(batched(pending, size), first_ark)
        work = functools.partial(_dump_block, dump=dump)
        # Closed, so that an error here also ends the processes.
        with closing(run_blocks(work, blocks, nj)) as finished:
            with progress(what=str(out_dir), total=len(pending)) as bar:
                for new, bad in finished:
                    for key in new:
                        new[key] = new[key]._replace(digest=digests[key])
                    _append_journal(journal, new)
                    done.update(new)
                    faults.update(bad)
                    bar.set_postfix_str(f"{len(faults)} bad", refresh=False)
                    bar.update(len(new) + len(bad))
    _report_faults(faults, out_dir, len(utterances), max_bad_utterances)
    _write_tables(data, done, dump)
    _tidy(journal, recorded, done, out_dir)


def _write_tables(data: DataDir, done: Done, dump: Dump) -> None:
    kept = data.subset(done).tables
    names = ("text", "prompt", "utt2spk")
    tables = {name: kept[name] for name in names if name in kept}
    tables["utt2num_samples"] = {key: str(done[key].num_samples) for key in done}
    attributes = {"feats_type": dump.feats_type, "fs": str(dump.fs)}
    if dump.feats_type == "raw":
        attributes["audio_format"] = dump.audio_format
        index = "wav.scp"
    else:
        tables["utt2num_frames"] = {key: str(done[key].num_frames) for key in done}
        index = "feats.scp"
    if dump.feats_type == "fbank":
        attributes["feats_dim"] = str(FBANK_CONF["n_mels"])
    if dump.tokenizer is not None:
        attributes["tokenizer"] = " ".join(dump.tokenizer.identity.values())
        if dump.tokenizer.remove_repeats:
            tables["run_lengths.scp"] = {
                key: f"{dump.out_dir / _of_run_lengths(done[key].location)}"
                for key in done
            }
    tables[index] = {key: f"{dump.out_dir / done[key].location}" for key in done}
    DataDir(dump.out_dir, tables, attributes).write(dump.out_dir)
    seconds = sum(record.num_samples for record in done.values()) / dump.fs
    frames = sum(record.num_frames for record in done.values())
    logging.info(
        "%s: %d utterances, %.2f h%s",
        dump.out_dir,
        len(done),
        seconds / 3600,
        f", {frames} frames" if frames else "",
    )


def _report_faults(faults: Faults, out_dir: Path, total: int, allowed: int) -> None:
    report = out_dir / "bad_utterances"
    if not faults:
        report.unlink(missing_ok=True)
        return
    with explain_write_errors(report):
        write_scp(report, faults)
    message = first_few(
        f"audio that cannot be used (all in {report})", [*faults.values()]
    )
    if len(faults) == total:
        raise ValueError(f"{message}\nno utterance is left")
    if len(faults) > allowed:
        raise ValueError(
            f"{message}\nfix these, or leave them out with --max_bad_utterances "
            f"{len(faults)}; finished utterances are kept"
        )
    logging.warning("left out: %s", message)


# The journal


def _read_journal(journal: Path) -> Done:
    records: Done = {}
    if journal.exists():
        for line in journal.read_text(encoding="utf-8").splitlines():
            fields = line.split(" ")
            if len(fields) == 6:  # a line that was cut short is an utterance to redo
                key, samples, frames, size, location, digest = fields
                records[key] = Record(
                    int(samples), int(frames), int(size), location, digest
                )
    return records


def _journal_lines(records: Done) -> str:
    return "".join(
        " ".join(map(str, (key, *record))) + "\n" for key, record in records.items()
    )


def _append_journal(journal: Path, records: Done) -> None:
    # The line break first: an earlier run may have been stopped within a line.
    with explain_write_errors(journal):
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("a", encoding="utf-8") as file:
            file.write("\n" + _journal_lines(records))


def _still_good(recorded: Done, digests: Dict[str, str], out_dir: Path) -> Done:
    @functools.lru_cache(maxsize=1024)  # utterances share their ark
    def size(file: str) -> int:
        try:
            return os.stat(out_dir / file).st_size
        except OSError:
            return -1

    return {
        key: record
        for key, record in recorded.items()
        if digests.get(key) == record.digest and size(record.file) == record.size
    }


def _tidy(journal: Path, recorded: Done, done: Done, out_dir: Path) -> None:
    """Remove the files that only earlier runs needed, and their lines."""
    needed = {record.file for record in done.values()}
    for file in {record.file for record in recorded.values()} - needed:
        (out_dir / file).unlink(missing_ok=True)
        (out_dir / _of_run_lengths(file)).unlink(missing_ok=True)
    with explain_write_errors(journal):
        write_text(journal, _journal_lines(done))


# The work


def _ark_number(record: Record) -> int:
    name = Path(record.file).name.split(".")
    return int(name[1]) if name[0] == "feats" and name[-1] == "ark" else 0


def _dump_block(
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


def _of_run_lengths(location: str) -> str:
    """Return the location of run lengths, which are stored like their tokens."""
    return location.replace("data/feats.", "data/run_lengths.", 1)


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
