"""Lhotse Shar shards: audio and transcripts in files that are read from start to end.

    out_dir/info.json                       what it was made of, and how much it is
    out_dir/shards/cuts.000000.jsonl.gz     ids, transcripts, speakers, durations
    out_dir/shards/recording.000000.tar     the audio, in the same order

A shard is written under temporary names, the directory as `.out_dir.partial`: what has
its final name is whole. A second run goes on with the first shard that is missing.
"""

import functools
import hashlib
import io
import json
import logging
import random
import shutil
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Tuple, Union

import soundfile
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.serialization import SequentialJsonlWriter, load_jsonl
from lhotse.shar.utils import to_shar_placeholder
from lhotse.shar.writers.tar import TarWriter

from espnet_dus.data.audio import to_pcm16
from espnet_dus.data.data_dir import DataDir, explain_write_errors
from espnet_dus.data.dataset import BadUtterances
from espnet_dus.data.parallel import run_blocks
from espnet_dus.io import atomic_path, progress, write_text

SHUFFLE_SEED = 0


class ShardInfo(NamedTuple):
    """What a directory of shards holds.

    Attributes:
        source: Digest of what it was made of.
        num_shards: Number of shards.
        num_utterances: Number of utterances.
        seconds: Their duration.
    """

    source: str
    num_shards: int
    num_utterances: int
    seconds: float


def read_info(shard_dir: Union[str, Path]) -> ShardInfo:
    """Read what a directory of shards holds.

    Raises:
        ValueError: It is no such directory.
    """
    path = Path(shard_dir, "info.json")
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; expected a directory of shards, which stage 4 "
            "writes with --feats_type shar"
        )
    return ShardInfo(**json.loads(path.read_text(encoding="utf-8")))


def list_shards(shard_dir: Union[str, Path]) -> List[Dict[str, str]]:
    """List a directory's shards, as `CutSet.from_shar(fields=...)` names their files.

    Raises:
        ValueError: Files are missing or too many.
    """
    info = read_info(shard_dir)
    shards = [
        {"cuts": str(cuts), "recording": str(_recording_path(cuts))}
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

    The utterances are shuffled, so that a shard is a sample of the whole. Audio files
    are taken as they are, byte by byte.

    Args:
        data_dir: A dump with audio (feats_type raw).
        out_dir: The directory of shards to write.
        shard_size: Utterances in a shard.
        nj: Number of processes.
        max_bad_utterances: So many unreadable ones may be left out.

    Raises:
        ValueError: `data_dir` is no such dump, or an option is out of range.
        TooManyBadUtterances: More are unreadable.
    """
    data = DataDir.read(data_dir)
    data.validate()
    if data.attributes.get("feats_type") != "raw":
        raise ValueError(
            f"{data_dir}: expected audio that stage 3 has written (feats_type raw)"
        )
    if "prompt" in data.tables:
        raise ValueError(
            f"{data.path / 'prompt'}: shards do not hold prompts; train from files "
            "(--feats_type raw)"
        )
    fs = int(data.attributes["fs"])
    keys = sorted(data.tables["text"])
    random.Random(SHUFFLE_SEED).shuffle(keys)
    source = hashlib.blake2b(repr((fs, shard_size)).encode(), digest_size=8)
    for name in ("wav.scp", "text", "utt2spk", "utt2num_samples"):
        source.update(repr(sorted(data.tables[name].items())).encode())
    write_shards(
        _cuts_of(data, keys, fs),
        out_dir,
        source.hexdigest(),
        fs=fs,
        shard_size=shard_size,
        nj=nj,
        max_bad_utterances=max_bad_utterances,
        total=len(keys),
    )


def _cuts_of(data: DataDir, keys: List[str], fs: int) -> Iterator[MonoCut]:
    for key in keys:
        num_samples = int(data.tables["utt2num_samples"][key])
        yield make_cut(
            key,
            data.tables["wav.scp"][key],
            fs,
            num_samples,
            data.tables["text"][key],
            data.tables["utt2spk"][key],
        )


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
    seconds = num_samples / fs
    return MonoCut(
        id=key,
        start=0,
        duration=seconds,
        channel=0,
        recording=Recording(
            id=key,
            sources=[AudioSource(type="file", channels=[0], source=path)],
            sampling_rate=fs,
            num_samples=num_samples,
            duration=seconds,
        ),
        supervisions=[
            SupervisionSegment(
                id=key,
                recording_id=key,
                start=0,
                duration=seconds,
                text=text,
                speaker=speaker,
            )
        ],
    )


# -- any cuts --------------------------------------------------------------------------


def write_shards(
    cuts: Iterable[MonoCut],
    out_dir: Union[str, Path],
    source: str,
    fs: int = 16000,
    shard_size: int = 1000,
    nj: int = 1,
    max_bad_utterances: int = 0,
    total: int = None,
) -> None:
    """Write shards of cuts: lhotse's own corpus preparation, or `write_data_dir`.

    Args:
        cuts: One utterance each, with its transcript; the same in every run.
        out_dir: The directory of shards to write.
        source: Digest of what the cuts are made of: with another one, all is redone.
        fs: Sampling rate of the audio (Hz); other rates are converted.
        shard_size: Utterances in a shard.
        nj: Number of processes.
        max_bad_utterances: So many unreadable ones may be left out.
        total: Number of cuts, for the progress; None: not known.

    Raises:
        ValueError: An option is out of range, or nothing is left.
        TooManyBadUtterances: More are unreadable.
        OSError: A file cannot be written.
    """
    if shard_size < 1 or nj < 1:
        raise ValueError(
            f"expected shard_size and nj from 1 on, got {shard_size} and {nj}"
        )
    out_dir = Path(out_dir)
    if (out_dir / "info.json").is_file() and read_info(out_dir).source == source:
        logging.info(f"{out_dir}: done before")
        return
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    marker = partial / "source"
    if not (marker.is_file() and marker.read_text(encoding="utf-8") == source):
        shutil.rmtree(partial, ignore_errors=True)
        write_text(marker, source)
    shards = partial / "shards"
    shards.mkdir(exist_ok=True)
    for stray in shards.glob(".*.tmp.*"):  # of a killed run
        stray.unlink()
    work = functools.partial(
        _write_shard,
        directory=shards,
        fs=fs,
        bad=BadUtterances(partial / "bad_utterances.txt", max_bad_utterances),
    )
    num_shards = num_utterances = 0
    seconds = 0.0
    num_bad = 0
    # Closed, so that an error here also ends the processes.
    with closing(run_blocks(work, _blocks(cuts, shard_size), nj)) as finished:
        with progress(what=str(out_dir), total=total) as bar:
            for utterances, duration, bad in finished:
                num_shards += utterances > 0
                num_utterances += utterances
                seconds += duration
                num_bad += bad
                bar.set_postfix_str(f"{num_bad} bad", refresh=False)
                bar.update(utterances + bad)
    if not num_utterances:
        raise ValueError(f"{out_dir}: no utterance is left")
    info = ShardInfo(source, num_shards, num_utterances, round(seconds, 3))
    with explain_write_errors(partial / "info.json"):
        write_text(partial / "info.json", json.dumps(info._asdict(), indent=2) + "\n")
    if out_dir.exists():
        shutil.rmtree(out_dir)
    partial.rename(out_dir)
    logging.info(
        f"{out_dir}: {num_utterances} utterances, {seconds / 3600:.2f} h, "
        f"{num_shards} shards"
    )


def _blocks(
    cuts: Iterable[MonoCut], shard_size: int
) -> Iterator[Tuple[int, List[MonoCut]]]:
    cuts, number = iter(cuts), 0
    while block := list(islice(cuts, shard_size)):
        yield number, block
        number += 1


def _recording_path(cuts_path: Path) -> Path:
    number = cuts_path.name.split(".")[1]
    return cuts_path.with_name(f"recording.{number}.tar")


def _write_shard(
    block: Tuple[int, List[MonoCut]], directory: Path, fs: int, bad: BadUtterances
) -> Tuple[int, float, int]:
    """Write a shard; give its utterances, their seconds, and how many were left out."""
    number, cuts = block
    cuts_path = directory / f"cuts.{number:06d}.jsonl.gz"
    if cuts_path.is_file():  # it is named last: the shard is whole
        done = [cut["duration"] for cut in load_jsonl(cuts_path)]
        return len(done), sum(done), len(cuts) - len(done)
    kept: List[Tuple[MonoCut, bytes]] = []
    for cut in cuts:
        try:
            audio, num_samples = _flac(cut, fs)
        except Exception as error:  # lhotse's backends raise what they like
            bad.add(cut.id, error)
            continue
        said = cut.supervisions[0]
        cut = make_cut(cut.id, "", fs, num_samples, said.text, said.speaker)
        cut.recording = to_shar_placeholder(cut.recording)
        kept.append((cut, audio))
    if not kept:
        return 0, 0.0, len(cuts)
    tar_path = _recording_path(cuts_path)
    with explain_write_errors(tar_path), atomic_path(tar_path) as temporary:
        with TarWriter(temporary, shard_size=None) as tar:
            for cut, audio in kept:
                manifest = json.dumps(cut.recording.to_dict()) + "\n"
                tar.write(f"{cut.id}.flac", io.BytesIO(audio))
                tar.write(f"{cut.id}.json", io.BytesIO(manifest.encode()), count=False)
    with explain_write_errors(cuts_path), atomic_path(cuts_path) as temporary:
        with SequentialJsonlWriter(temporary) as lines:
            for cut, _ in kept:
                lines.write(cut)
    seconds = sum(cut.duration for cut, _ in kept)
    return len(kept), seconds, len(cuts) - len(kept)


def _flac(cut: MonoCut, fs: int) -> Tuple[bytes, int]:
    """Return a cut's audio as FLAC, the file itself where it is that; and its samples.

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
        frames = soundfile.info(io.BytesIO(audio)).frames
        if frames != recording.num_samples:
            raise ValueError(
                f"{frames} samples, {recording.num_samples} were announced"
            )
        return audio, frames
    samples = cut.resample(fs).load_audio()
    if len(samples) != 1:
        raise ValueError(f"{len(samples)} channels; expected mono")
    encoded = io.BytesIO()
    soundfile.write(encoded, to_pcm16(samples[0]), fs, format="flac", subtype="PCM_16")
    return encoded.getvalue(), samples.shape[1]
