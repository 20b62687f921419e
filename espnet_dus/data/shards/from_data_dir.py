"""Shards of a Kaldi data directory that stage 3 or 4 has written.

Dimensions: F frames, K streams.
"""

import functools
import hashlib
import random
from pathlib import Path
from typing import Any, Iterable, Iterator, List, Tuple, Union

import kaldiio

from espnet_dus.data.data_dir import DataDir
from espnet_dus.data.dataset import BadUtterances
from espnet_dus.data.shards.cuts import make_cut, token_cut
from espnet_dus.data.shards.from_cuts import SHUFFLE_SEED, in_blocks, store_audio
from espnet_dus.data.shards.shar_writer import Stored, write_blocks


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
    index, tokenizer, store = "wav.scp", None, functools.partial(store_audio, fs=fs)
    if feats_type == "tokens":
        name, sha256 = data.attributes["tokenizer"].split()
        index, tokenizer, store = "feats.scp", dict(name=name, sha256=sha256), _tokens
        settings += (sha256,)
    source = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    for name in (index, "text", "utt2spk", "utt2num_samples"):
        source.update(repr(sorted(data.tables[name].items())).encode())
    write_blocks(
        in_blocks(_rows(data, keys, fs), shard_size),
        store,
        out_dir,
        source.hexdigest(),
        nj=nj,
        max_bad_utterances=max_bad_utterances,
        total=len(keys),
        tokenizer=tokenizer,
    )


def _rows(data: DataDir, keys: List[str], fs: int) -> Iterator[Any]:
    """Return what `store_audio` or `_tokens` takes."""
    for key in keys:
        num_samples = int(data.tables["utt2num_samples"][key])
        said = data.tables["text"][key], data.tables["utt2spk"][key]
        if "feats.scp" not in data.tables:
            yield make_cut(key, data.tables["wav.scp"][key], fs, num_samples, *said)
        else:
            num_frames = int(data.tables["utt2num_frames"][key])
            location = data.tables["feats.scp"][key]
            yield location, num_frames, (key, num_samples / fs, *said)


def _tokens(rows: Iterable[Tuple[str, int, Tuple]], bad: BadUtterances) -> Stored:
    for location, num_frames, utterance in rows:
        try:
            tokens_FK = kaldiio.load_mat(location).reshape(num_frames, -1)
        except Exception as error:  # a damaged ark may raise anything
            bad.add(utterance[0], f"{location}: {error!r}")
            continue
        yield token_cut(*utterance, tokens_FK)
