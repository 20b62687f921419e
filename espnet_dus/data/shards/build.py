"""Building the stream of shards from the options of a training."""

import argparse
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Optional, Union

import torch

from espnet_dus.data.dataset import DUSPreprocessor
from espnet_dus.data.lengths import sampling_rate, speech_positions
from espnet_dus.data.shards.augment import Augmentation
from espnet_dus.data.shards.config import DEFAULTS, StreamingConfig
from espnet_dus.data.shards.cut_stream import BatchMaker, SequenceLength
from espnet_dus.data.shards.mix import Corpus, read_weights
from espnet_dus.data.shards.shar import ShardInfo, list_shards, read_info
from espnet_dus.data.shards.streaming import StreamingIterFactory
from espnet_dus.data.speech_tokens.info import TokenizerInfo, check_same_tokenizer
from espnet_dus.io import check_names, read_yaml


def build_factory(
    args: argparse.Namespace,
    preprocess: DUSPreprocessor,
    collate: Callable,
    distributed: bool,
) -> StreamingIterFactory:
    """Build the factory from the task's options.

    Args:
        args: The options.
        preprocess: ESPnet's preprocessing.
        collate: ESPnet's collation.
        distributed: Whether torch.distributed knows which rank this is.

    Raises:
        ValueError: An option is out of range, or shards are missing or hold audio where
            the model takes tokens, or the reverse.
        RuntimeError: Their tokens are of another tokenizer than the model's.
    """
    check_names("streaming_conf", args.streaming_conf, DEFAULTS)
    config = StreamingConfig(**args.streaming_conf)
    batch_sizes = read_batch_sizes(config.batch_sizes)
    corpora = []
    tokenizer = preprocess.speech_tokenizer
    if tokenizer is not None:
        _check_unchanged(config)
    for directory, weight in read_weights(config.shards).items():
        info = read_info(directory)
        _check_content(directory, info, tokenizer)
        sizes = info.num_utterances, info.seconds
        corpora.append(Corpus(directory, weight, list_shards(directory), *sizes))
    prompt = args.model_conf.get("prompt", "")
    length = SequenceLength(
        preprocess,
        partial(speech_positions, args) if tokenizer is None else None,
        len(preprocess.tokenizer.prompt_tokens(prompt)),
        max(batch_sizes or [config.max_tokens]),
        config,
    )
    augmentation = Augmentation(sampling_rate(args), config)
    return StreamingIterFactory(
        config=config,
        corpora=corpora,
        length=length,
        make_batch=BatchMaker(preprocess, collate, augmentation),
        batch_sizes=batch_sizes,
        num_workers=args.num_workers,
        rank=torch.distributed.get_rank() if distributed else 0,
        world_size=torch.distributed.get_world_size() if distributed else 1,
        seed=args.seed,
        pin_memory=args.ngpu > 0,
    )


def _check_content(
    directory: str, info: ShardInfo, tokenizer: Optional[TokenizerInfo]
) -> None:
    if tokenizer is None and info.tokenizer is not None:
        raise ValueError(
            f"{directory}: holds tokens of the speech tokenizer "
            f"{info.tokenizer['name']}, but the model takes audio: name shards of "
            "audio, or train with speech_input: tokens"
        )
    if tokenizer is not None and info.tokenizer is None:
        raise ValueError(
            f"{directory}: holds audio, but the model takes speech tokens: tokenize "
            "the shards (stage 4 with --feats_type tokens_shar)"
        )
    if tokenizer is not None:
        check_same_tokenizer(info.tokenizer, tokenizer, directory)


def _check_unchanged(config: StreamingConfig) -> None:
    """Check that no option would change audio, where there is none."""
    for name in ("speed_factors", "noise", "rir"):
        if (value := getattr(config, name)) != DEFAULTS[name]:
            raise ValueError(
                f"streaming_conf: {name}={value} has no effect on speech tokens; "
                "change the audio before stage 3"
            )


def read_batch_sizes(
    sizes: Union[None, str, Dict[int, int]],
) -> Optional[Dict[int, int]]:
    """Read the option `batch_sizes`: a mapping, or a file of find_batch with one.

    Raises:
        ValueError: It is neither.
    """
    if sizes is None:
        return None
    where = "streaming_conf: batch_sizes"
    if isinstance(sizes, str):
        if not Path(sizes).is_file():
            raise ValueError(f"{where}: {sizes}: no such file")
        conf = read_yaml(sizes).get("streaming_conf") or {}
        where, sizes = f"{sizes}: {where}", conf.get("batch_sizes")
    numbers = [*sizes, *sizes.values()] if isinstance(sizes, dict) else []
    if not numbers or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise ValueError(
            f"{where}: expected utterances by LLM positions, got {sizes!r}"
        )
    return sizes
