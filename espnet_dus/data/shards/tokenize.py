"""Shards of speech tokens, made of shards of audio one by one."""

import functools
import logging
import re
from pathlib import Path
from typing import Dict, Iterator, Mapping, Tuple, Union

import numpy as np
import yaml
from lhotse.audio.backend import LibsndfileBackend, audio_backend

from espnet_dus.data.dataset import BadUtterances
from espnet_dus.data.parallel import groups
from espnet_dus.data.shards.cut_stream import read_part
from espnet_dus.data.shards.cuts import token_cut
from espnet_dus.data.shards.mix import Part, Shard, read_weights
from espnet_dus.data.shards.shar import ShardInfo, list_shards, read_info
from espnet_dus.data.shards.shar_writer import Stored, write_blocks
from espnet_dus.data.speech_tokens.devices import num_jobs
from espnet_dus.data.speech_tokens.info import TokenizerInfo, check_same_tokenizer
from espnet_dus.data.speech_tokens.tokenizer import tokenizer_of_process
from espnet_dus.data.waveform import to_pcm16
from espnet_dus.io import write_text

MIX = "mix.yaml"
OF_AUDIO = "tokens of "  # start of `source` in what is made here


def tokenize_shards(
    shards: Union[str, Mapping[str, float]],
    out_dir: Union[str, Path],
    speech_tokenizer: Union[str, Path],
    nj: int = 1,
    max_bad_utterances: int = 0,
    job: str = "1/1",
) -> None:
    """Write the speech tokens of directories of audio shards.

    Each directory becomes one of the same name in `out_dir`, each shard one shard.
    `out_dir`/mix.yaml lists them with their weights, as training takes them. A complete
    directory of the same audio and tokenizer is not made again, and no longer needs its
    audio.

    Args:
        shards: A directory of audio shards, or a YAML file of directories with weights.
        out_dir: Where the directories of token shards are written.
        speech_tokenizer: A tokenizer directory.
        nj: Number of processes; on GPUs at most `JOBS_PER_GPU` for each.
        max_bad_utterances: Number of unreadable utterances and shards that may be left
            out of a directory.
        job: `K/N` does the K-th part of the work, so that several machines share it.
            When all parts are done, a run without it completes the directories.

    Raises:
        ValueError: An option is out of range, shards are missing, or their sampling
            rate is not the tokenizer's.
        RuntimeError: The encoder cannot be loaded, or token shards that are there are
            of another tokenizer.
        TooManyBadUtterances: More are unreadable.
    """
    part = _parse_job(job)
    info = TokenizerInfo.read(speech_tokenizer)
    made: Dict[str, float] = {}
    audio: Dict[str, ShardInfo] = {}  # shards to read, by directory
    for directory, weight in read_weights(shards).items():
        out = Path(out_dir, Path(directory).name)
        if str(out) in made:
            raise ValueError(
                f"{directory}: the name {out.name} occurs twice in {shards}"
            )
        made[str(out)] = weight
        if _is_made(directory, out, info):
            logging.info(f"{out}: there already, {directory} is not read")
            continue
        audio[directory] = read_info(directory)
        if audio[directory].tokenizer is not None:
            raise ValueError(f"{directory}: expected shards of audio, it holds tokens")
    for directory, of_audio in audio.items():
        write_blocks(
            list_shards(directory),
            functools.partial(
                _tokens, directory=Path(speech_tokenizer), sha256=info.sha256
            ),
            Path(out_dir, Path(directory).name),
            f"{OF_AUDIO}{of_audio.source} {info.sha256}",
            nj=num_jobs(nj),
            max_bad_utterances=max_bad_utterances,
            total=of_audio.num_utterances,
            tokenizer=info.identity,
            job=part,
        )
    if part == (1, 1):
        write_text(Path(out_dir, MIX), yaml.safe_dump(made, sort_keys=False))


def _is_made(directory: str, out: Path, info: TokenizerInfo) -> bool:
    """Return whether token shards are there that need no audio: it is gone, or a dump.

    Raises:
        ValueError: They hold audio.
        RuntimeError: They are of another tokenizer.
    """
    if not (out / "info.json").is_file():
        return False
    there = read_info(out)
    if there.tokenizer is None:
        raise ValueError(f"{out}: holds audio; choose another directory for tokens")
    if Path(directory, "info.json").is_file() and there.source.startswith(OF_AUDIO):
        return False  # `write_blocks` sees whether anything has changed
    check_same_tokenizer(there.tokenizer, info, str(out))
    return True


def _parse_job(job: str) -> Tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", job)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"job: expected K/N, such as 1/8, got {job!r}")
    return int(match[1]), int(match[2])


def _tokens(shard: Shard, bad: BadUtterances, directory: Path, sha256: str) -> Stored:
    tokenizer = tokenizer_of_process(directory, sha256)
    with audio_backend(LibsndfileBackend()):
        fs = tokenizer.info.sampling_rate
        for group in groups(_read(shard, bad, fs), fs):
            tokens = tokenizer([samples for _, samples in group])
            for (utterance, _), tokens_FK in zip(group, tokens):
                yield token_cut(*utterance, tokens_FK)


def _read(
    shard: Shard, bad: BadUtterances, fs: int
) -> Iterator[Tuple[Tuple, np.ndarray]]:
    """Read the audio of a shard as 16-bit samples."""
    for cut in read_part(Part(shard), bad):
        if cut.sampling_rate != fs:
            raise ValueError(
                f"{shard['cuts']}: audio of {cut.sampling_rate} Hz, but the speech "
                f"tokenizer takes {fs} Hz: write the shards at that rate"
            )
        try:
            samples = to_pcm16(cut.load_audio()[0])
        except Exception as error:  # lhotse's backends raise errors of any type
            bad.add(cut.id, f"its audio cannot be read: {error!r}")
            continue
        said = cut.supervisions[0]
        yield (cut.id, cut.duration, said.text, said.speaker), samples
