"""Writes a directory of shards, block by block, and resumes what was stopped.

A shard is written under temporary names, the directory as `.out_dir.partial`: what has
its final name is whole. A second run writes only the shards that are missing.
"""

import functools
import io
import json
import logging
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, Optional, Tuple, Union

from filelock import FileLock
from lhotse import MonoCut
from lhotse.serialization import SequentialJsonlWriter, load_jsonl
from lhotse.shar.writers.tar import TarWriter
from tqdm import tqdm

from espnet_dus.data.data_dir import explain_write_errors
from espnet_dus.data.dataset import BadUtterances
from espnet_dus.data.parallel import run_blocks
from espnet_dus.data.shards.shar import AUDIO, TOKENS, ShardInfo, read_info, tar_beside
from espnet_dus.io import atomic_path, progress, write_text

SUFFIXES = {AUDIO: ".flac", TOKENS: ".npy"}

# Utterances that can be read: a cut, and the file with its audio or tokens.
Stored = Iterator[Tuple[MonoCut, bytes]]


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
    tar_path = tar_beside(cuts_path, field)
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
