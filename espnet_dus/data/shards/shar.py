"""Lhotse Shar shards: speech and transcripts in files that are read from start to end.

    out_dir/info.json                       what it was made of, and how much it is
    out_dir/shards/cuts.000000.jsonl.gz     ids, transcripts, speakers, durations
    out_dir/shards/recording.000000.tar     the audio, in the same order, or
    out_dir/shards/tokens.000000.tar        speech tokens (F, K), int16 or int32

A shard is written under temporary names, the directory as `.out_dir.partial`: what has
its final name is whole. A second run writes only the shards that are missing.

Dimensions: F frames, K streams.
"""

import functools
import hashlib
import io
import json
import logging
import random
import shutil
from contextlib import closing
from itertools import batched
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
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
from filelock import FileLock
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.array import Array
from lhotse.serialization import SequentialJsonlWriter, load_jsonl
from lhotse.shar.utils import to_shar_placeholder
from lhotse.shar.writers.tar import TarWriter
from tqdm import tqdm

from espnet_dus.data.audio import to_pcm16
from espnet_dus.data.data_dir import DataDir, explain_write_errors
from espnet_dus.data.dataset import BadUtterances
from espnet_dus.data.parallel import run_blocks
from espnet_dus.io import atomic_path, progress, write_text

SHUFFLE_SEED = 0
AUDIO, TOKENS = "recording", "tokens"  # what a shard holds, an attribute of its cuts
SUFFIXES = {AUDIO: ".flac", TOKENS: ".npy"}

# Utterances that can be read: a cut, and the file with its audio or tokens.
Stored = Iterator[Tuple[MonoCut, bytes]]


class ShardInfo(NamedTuple):
    """What a directory of shards holds.

    Attributes:
        source: Digest of what it was made of.
        num_shards: Number of shards.
        num_utterances: Number of utterances.
        seconds: Their duration.
        tokenizer: Name and sha256 of the speech tokenizer; None: they hold audio.
    """

    source: str
    num_shards: int
    num_utterances: int
    seconds: float
    tokenizer: Optional[Dict[str, str]] = None

    @property
    def field(self) -> str:
        """`AUDIO` or `TOKENS`."""
        return AUDIO if self.tokenizer is None else TOKENS


def read_info(shard_dir: Union[str, Path]) -> ShardInfo:
    """Read what a directory of shards holds.

    Raises:
        ValueError: It is not such a directory.
    """
    path = Path(shard_dir, "info.json")
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; expected a directory of shards, which stage 4 "
            "writes with --feats_type shar or tokens_shar"
        )
    return ShardInfo(**json.loads(path.read_text(encoding="utf-8")))


def list_shards(shard_dir: Union[str, Path]) -> List[Dict[str, str]]:
    """List a directory's shards, as `CutSet.from_shar(fields=...)` names their files.

    Raises:
        ValueError: Files are missing or too many.
    """
    info = read_info(shard_dir)
    shards = [
        {"cuts": str(cuts), info.field: str(_tar_path(cuts, info.field))}
        for cuts in sorted(Path(shard_dir, "shards").glob("cuts.*.jsonl.gz"))
    ]
    if len(shards) != info.num_shards:
        raise ValueError(
            f"{shard_dir}: {len(shards)} shards, info.json says {info.num_shards}; "
            "delete the directory and run stage 4 again"
        )
    return shards


def read_texts(shard_dir: Union[str, Path]) -> Iterator[str]:
    """Yield the transcript of each utterance of a directory of shards."""
    for shard in list_shards(shard_dir):
        for cut in load_jsonl(shard["cuts"]):
            yield cut["supervisions"][0]["text"]


# -- a Kaldi data directory ------------------------------------------------------------


def write_data_dir(
    data_dir: Union[str, Path],
    out_dir: Union[str, Path],
    shard_size: int = 1000,
    nj: int = 1,
    max_bad_utterances: int = 0,
) -> None:
    """Write the shards of a data directory that stage 3 or 4 has written.

    The utterances are shuffled, so that a shard is a sample of the whole. FLAC files
    are copied as they are, other audio becomes FLAC. Run lengths of speech tokens are
    left out.

    Args:
        data_dir: A dump with audio (feats_type raw) or speech tokens (tokens).
        out_dir: The directory of shards to write.
        shard_size: Utterances in a shard.
        nj: Number of processes.
        max_bad_utterances: Number of unreadable utterances that may be left out.

    Raises:
        ValueError: `data_dir` is not such a dump, or an option is out of range.
        TooManyBadUtterances: More are unreadable.
    """
    data = DataDir.read(data_dir)
    data.validate()
    feats_type = data.attributes.get("feats_type")
    if feats_type not in ("raw", "tokens"):
        raise ValueError(
            f"{data_dir}: expected audio or speech tokens that stage 3 has written "
            "(feats_type raw or tokens)"
        )
    if "prompt" in data.tables:
        raise ValueError(
            f"{data.path / 'prompt'}: shards do not hold prompts; train from files "
            f"(--feats_type {feats_type})"
        )
    fs = int(data.attributes["fs"])
    keys = sorted(data.tables["text"])
    random.Random(SHUFFLE_SEED).shuffle(keys)
    settings: Tuple[Any, ...] = (fs, shard_size)
    index, tokenizer, store = "wav.scp", None, functools.partial(_audio, fs=fs)
    if feats_type == "tokens":
        name, sha256 = data.attributes["tokenizer"].split()
        index, tokenizer, store = "feats.scp", dict(name=name, sha256=sha256), _tokens
        settings += (sha256,)
    source = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    for name in (index, "text", "utt2spk", "utt2num_samples"):
        source.update(repr(sorted(data.tables[name].items())).encode())
    write_blocks(
        _batched(_rows(data, keys, fs), shard_size),
        store,
        out_dir,
        source.hexdigest(),
        nj=nj,
        max_bad_utterances=max_bad_utterances,
        total=len(keys),
        tokenizer=tokenizer,
    )


def _rows(data: DataDir, keys: List[str], fs: int) -> Iterator[Any]:
    """Return what `_audio` or `_tokens` takes."""
    for key in keys:
        num_samples = int(data.tables["utt2num_samples"][key])
        said = data.tables["text"][key], data.tables["utt2spk"][key]
        if "feats.scp" not in data.tables:
            yield make_cut(key, data.tables["wav.scp"][key], fs, num_samples, *said)
        else:
            num_frames = int(data.tables["utt2num_frames"][key])
            location = data.tables["feats.scp"][key]
            yield location, num_frames, (key, num_samples / fs, *said)


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


# -- writing ---------------------------------------------------------------------------


def write_shards(
    cuts: Iterable[MonoCut],
    out_dir: Union[str, Path],
    source: str,
    fs: int = 16000,
    shard_size: int = 1000,
    **options: Any,
) -> None:
    """Write audio shards of lhotse's cuts, such as those of its corpus preparation.

    Args:
        cuts: One utterance each, with its transcript; the same in every run.
        out_dir: The directory of shards to write.
        source: See `write_blocks`, whose errors this function raises too.
        fs: Sampling rate of the audio (Hz); other rates are converted.
        shard_size: Utterances in a shard.
        options: `nj` and `max_bad_utterances`, see `write_blocks`.
    """
    store = functools.partial(_audio, fs=fs)
    write_blocks(_batched(cuts, shard_size), store, out_dir, source, **options)


def _batched(utterances: Iterable, shard_size: int) -> Iterator[Sequence]:
    if shard_size < 1:
        raise ValueError(f"expected a shard_size from 1 on, got {shard_size}")
    return batched(utterances, shard_size)


def write_blocks(
    blocks: Iterable,
    store: Callable[[Any, BadUtterances], Stored],
    out_dir: Union[str, Path],
    source: str,
    nj: int = 1,
    max_bad_utterances: int = 0,
    total: Optional[int] = None,
    tokenizer: Optional[Dict[str, str]] = None,
    job: Tuple[int, int] = (1, 1),
) -> None:
    """Write a directory of shards, one of each block of utterances.

    Args:
        blocks: The same in every run, each of them what `store` takes.
        store: Yields the utterances of a block that can be read, and counts the others.
        out_dir: The directory of shards to write.
        source: Digest of what the blocks are made of: with another one, all is redone.
        nj: Number of processes.
        max_bad_utterances: Number of unreadable utterances that may be left out.
        total: Number of utterances, for the progress; None: not known.
        tokenizer: Identity of the speech tokenizer; None: they are shards of audio.
        job: (k, n): writes only every n-th shard, starting at the k-th. A later call
            without `job` writes what is missing and renames `out_dir`.

    Raises:
        ValueError: An option is out of range, or nothing is left.
        TooManyBadUtterances: More are unreadable.
        OSError: A file cannot be written.
    """
    if nj < 1:
        raise ValueError(f"expected a number of processes (nj) from 1 on, got {nj}")
    out_dir, is_whole = Path(out_dir), job == (1, 1)
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    shards, marker = partial / "shards", partial / "source"
    if _is_done(out_dir, source):
        return
    partial.parent.mkdir(parents=True, exist_ok=True)
    # Jobs may begin at once, and a whole run keeps others out until its end.
    with FileLock(f"{partial}.lock") as lock:
        if _is_done(out_dir, source):
            return
        if not (marker.is_file() and marker.read_text(encoding="utf-8") == source):
            shutil.rmtree(partial, ignore_errors=True)
            write_text(marker, source)
        shards.mkdir(exist_ok=True)
        work = functools.partial(
            _write_shard,
            store=store,
            field=AUDIO if tokenizer is None else TOKENS,
            directory=shards,
            bad=BadUtterances(partial / "bad_utterances.txt", max_bad_utterances),
        )
        bar = progress(what=str(out_dir), total=total and total // job[1])
        if not is_whole:
            lock.release()
            _write_missing(work, blocks, nj, job, bar)
            logging.info(f"{out_dir}: job {job[0]} of {job[1]} is done")
            return
        for stray in shards.glob(".*.tmp.*"):  # of a killed run
            stray.unlink()
        sums = _write_missing(work, blocks, nj, job, bar)
        info = ShardInfo(source, *sums, tokenizer)
        if not info.num_utterances:
            raise ValueError(f"{out_dir}: no utterance is left")
        with explain_write_errors(partial / "info.json"):
            content = json.dumps(info._asdict(), indent=2) + "\n"
            write_text(partial / "info.json", content)
        if out_dir.exists():
            shutil.rmtree(out_dir)
        partial.rename(out_dir)
        Path(lock.lock_file).unlink(missing_ok=True)
    logging.info(
        f"{out_dir}: {info.num_utterances} utterances, {info.seconds / 3600:.2f} h, "
        f"{info.num_shards} shards"
    )


def _is_done(out_dir: Path, source: str) -> bool:
    is_done = (out_dir / "info.json").is_file() and read_info(out_dir).source == source
    if is_done:
        logging.info(f"{out_dir}: done before")
    return is_done


def _write_missing(
    work: Callable, blocks: Iterable, nj: int, job: Tuple[int, int], bar: tqdm
) -> Tuple[int, int, float]:
    """Write the shards of a job; return their number, their utterances and seconds."""
    numbered = (block for block in enumerate(blocks) if block[0] % job[1] == job[0] - 1)
    num_shards = num_utterances = 0
    seconds = 0.0
    # Closed, so that an error here also ends the processes.
    with closing(run_blocks(work, numbered, nj)) as finished, bar:
        for utterances, duration in finished:
            num_shards += utterances > 0
            num_utterances += utterances
            seconds += duration
            bar.update(utterances)
    return num_shards, num_utterances, round(seconds, 3)


def _tar_path(cuts_path: Path, field: str) -> Path:
    number = cuts_path.name.split(".")[1]
    return cuts_path.with_name(f"{field}.{number}.tar")


def _write_shard(
    block: Tuple[int, Any],
    store: Callable[[Any, BadUtterances], Stored],
    field: str,
    directory: Path,
    bad: BadUtterances,
) -> Tuple[int, float]:
    """Write a shard; return the number of its utterances and their seconds."""
    number, utterances = block
    cuts_path = directory / f"cuts.{number:06d}.jsonl.gz"
    if cuts_path.is_file():  # it is named last: the shard is whole
        done = [cut["duration"] for cut in load_jsonl(cuts_path)]
        return len(done), sum(done)
    kept = list(store(utterances, bad))
    if not kept:
        return 0, 0.0
    tar_path = _tar_path(cuts_path, field)
    with explain_write_errors(tar_path), atomic_path(tar_path) as temporary:
        with TarWriter(temporary, shard_size=None) as tar:
            for cut, content in kept:
                manifest = json.dumps(getattr(cut, field).to_dict()) + "\n"
                tar.write(f"{cut.id}{SUFFIXES[field]}", io.BytesIO(content))
                tar.write(f"{cut.id}.json", io.BytesIO(manifest.encode()), count=False)
    with explain_write_errors(cuts_path), atomic_path(cuts_path) as temporary:
        with SequentialJsonlWriter(temporary) as lines:
            for cut, _ in kept:
                lines.write(cut)
    return len(kept), sum(cut.duration for cut, _ in kept)


def _audio(cuts: Iterable[MonoCut], bad: BadUtterances, fs: int) -> Stored:
    for cut in cuts:
        try:
            audio, num_samples = _flac(cut, fs)
        except Exception as error:  # lhotse's backends raise what they like
            bad.add(cut.id, error)
            continue
        said = cut.supervisions[0]
        cut = make_cut(cut.id, "", fs, num_samples, said.text, said.speaker)
        cut.recording = to_shar_placeholder(cut.recording)
        yield cut, audio


def _tokens(rows: Iterable[Tuple[str, int, Tuple]], bad: BadUtterances) -> Stored:
    for location, num_frames, utterance in rows:
        try:
            tokens_FK = kaldiio.load_mat(location).reshape(num_frames, -1)
        except Exception as error:  # a damaged ark may raise anything
            bad.add(utterance[0], f"{location}: {error!r}")
            continue
        yield token_cut(*utterance, tokens_FK)


def _flac(cut: MonoCut, fs: int) -> Tuple[bytes, int]:
    """Return a cut's audio as FLAC, unchanged if it is a FLAC file; and its samples.

    Raises:
        Exception: It cannot be read.
    """
    recording = cut.recording
    if (
        recording.sources[0].type == "file"
        and recording.sources[0].source.endswith(".flac")
        and recording.num_channels == 1
        and recording.sampling_rate == fs
        and not recording.transforms
        and (cut.start, cut.duration) == (0, recording.duration)
    ):
        audio = Path(recording.sources[0].source).read_bytes()
        with soundfile.SoundFile(io.BytesIO(audio)) as file:
            if file.frames != recording.num_samples:
                raise ValueError(
                    f"{file.frames} samples, {recording.num_samples} were announced"
                )
            file.seek(-1, soundfile.SEEK_END)
            file.read()  # fails if it was cut short
            return audio, file.frames
    samples = cut.resample(fs).load_audio()
    if len(samples) != 1:
        raise ValueError(f"{len(samples)} channels; expected mono")
    encoded = io.BytesIO()
    soundfile.write(encoded, to_pcm16(samples[0]), fs, format="flac", subtype="PCM_16")
    return encoded.getvalue(), samples.shape[1]
