"""Makes a tokenizer directory: k-means over an encoder's frames of the training set."""

import functools
import hashlib
import json
import logging
import random
from dataclasses import replace
from itertools import batched, takewhile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from espnet_dus.data.audio import AudioError, read_audio
from espnet_dus.data.data_dir import DataDir, Utterance, first_few, parse_channel
from espnet_dus.data.parallel import run_blocks
from espnet_dus.data.speech_tokens.devices import device_of_process, num_jobs
from espnet_dus.data.speech_tokens.encoder import Encoder
from espnet_dus.data.speech_tokens.encoder_factory import make_encoder, read_spec
from espnet_dus.data.speech_tokens.info import INFO, TokenizerInfo, read_tokenizer
from espnet_dus.data.waveform import Channel, to_pcm16
from espnet_dus.io import progress

# faiss warns below 39 points for a centre; fewer than this must be a mistake
FEWEST_FRAMES = 5  # for each cluster
BLOCK_SIZE = 20  # utterances whose frames a process computes at a time


def make_tokenizer(
    data_dir: Union[str, Path],
    out_dir: Union[str, Path],
    tokenizer: str,
    num_clusters: Optional[int] = None,
    remove_repeats: bool = False,
    kmeans_hours: float = 5.0,
    seed: int = 0,
    nj: int = 1,
    allow_pipes: bool = False,
    channel: Channel = None,
) -> TokenizerInfo:
    """Make a tokenizer directory, unless it is there and nothing has changed.

    Args:
        data_dir: The training set, a Kaldi data directory before stage 3.
        out_dir: The tokenizer directory to write.
        tokenizer: logmel, whisper_tiny_en, opuslm, a YAML file with the options of an
            encoder, or an existing tokenizer directory, which is copied.
        num_clusters: Number of clusters of k-means; None: 500. Not for encoders that
            give tokens themselves.
        remove_repeats: Whether a token that repeats the one before it is left out.
        kmeans_hours: Hours of audio, drawn at random, that k-means is learned on; all
            of the training set if it has less. 5 hours of 50 frames a second take 3.6
            MB of memory for each dimension of the encoder.
        seed: Random seed of the draw and of k-means.
        nj: Number of processes.
        allow_pipes: Whether to run the commands in wav.scp.
        channel: The channel to take of audio with several, as stage 3 does.

    Returns:
        The tokenizer's description.

    Raises:
        ValueError: The data directory is not valid, an option does not fit, or there
            are too few frames.
        RuntimeError: The encoder cannot be loaded.
    """
    if (Path(tokenizer) / INFO).is_file():
        if num_clusters is not None or remove_repeats:
            raise ValueError(
                f"num_clusters and remove_repeats have no effect on {tokenizer}, a "
                "tokenizer that exists: leave them out"
            )
        info, centres = read_tokenizer(tokenizer)
        if Path(tokenizer).resolve() == Path(out_dir).resolve():
            return info
        return info.write(out_dir, centres)
    channel = parse_channel(channel)
    name, spec = read_spec(tokenizer)
    data = DataDir.read(data_dir)
    data.validate(empty_text=True)
    utterances = data.utterances()
    wanted = {
        "encoder": spec,
        "num_clusters": num_clusters,
        "kmeans_hours": kmeans_hours,
        "seed": seed,
        "channel": channel,
        "utterances": len(utterances),
        "data": _digest(utterances),
    }
    if (Path(out_dir) / INFO).is_file():
        info, centres = read_tokenizer(out_dir)
        if info.learned_on.get("options") == wanted and info.name == name:
            logging.info(f"{out_dir}: the tokenizer {name} exists, nothing has changed")
            if info.remove_repeats != remove_repeats:
                info = replace(info, remove_repeats=remove_repeats)
                info = info.write(out_dir, centres)
            return info
    encoder = make_encoder(spec, device_of_process())
    centres, learned_on = None, {}
    vocab_sizes = encoder.vocab_sizes
    if vocab_sizes is not None:
        if num_clusters is not None:
            raise ValueError(
                f"num_clusters: the tokenizer {name} gives tokens itself, so there is "
                "nothing to cluster: leave it out"
            )
    else:
        num_clusters = num_clusters or 500
        frames_FD, learned_on = _frames(
            utterances, spec, encoder, kmeans_hours, seed, nj, (allow_pipes, channel)
        )
        centres = learn_centres(frames_FD, num_clusters, seed)
        vocab_sizes = (num_clusters,)
    info = TokenizerInfo(
        name=name,
        encoder={**spec, "sha256": encoder.sha256},
        frames_per_second=encoder.sampling_rate / encoder.frame_shift,
        sampling_rate=encoder.sampling_rate,
        vocab_sizes=vocab_sizes,
        remove_repeats=remove_repeats,
        learned_on={**learned_on, "options": wanted},
    )
    info = info.write(out_dir, centres)
    logging.info(f"{out_dir}: {info}")
    return info


def learn_centres(frames_FD: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Run k-means as ESPnet's discrete ASR does (`learn_kmeans.py`).

    Args:
        frames_FD: Frames (F, D), float32.
        num_clusters: Number of centres.
        seed: Of its random numbers.

    Returns:
        Centres (num_clusters, D), float32.

    Raises:
        ValueError: There are too few frames.
    """
    from sklearn.cluster import MiniBatchKMeans

    if num_clusters < 2:
        raise ValueError(
            f"num_clusters: expected a number from 2 on, got {num_clusters}"
        )
    if len(frames_FD) < FEWEST_FRAMES * num_clusters:
        raise ValueError(
            f"k-means with {num_clusters} clusters needs at least "
            f"{FEWEST_FRAMES * num_clusters} frames, but the training audio has "
            f"{len(frames_FD)}: raise --kmeans_hours if there is more audio, or lower "
            "--num_clusters"
        )
    kmeans = MiniBatchKMeans(
        num_clusters,
        max_iter=100,
        batch_size=10000,
        max_no_improvement=100,
        n_init=3,
        reassignment_ratio=0.0,
        compute_labels=False,
        random_state=seed,
    ).fit(frames_FD)
    inertia = kmeans.inertia_ / min(len(frames_FD), kmeans.batch_size)
    logging.info(
        f"k-means: {num_clusters} clusters of {len(frames_FD)} frames, mean squared "
        f"distance of the last batch {inertia:.4g}"
    )
    return kmeans.cluster_centers_.astype(np.float32)


def _frames(
    utterances: Sequence[Utterance],
    spec: Dict[str, Any],
    encoder: Encoder,
    hours: float,
    seed: int,
    nj: int,
    reading: Tuple[bool, Channel],
) -> Tuple[np.ndarray, Dict[str, Any]]:
    """Compute frames of utterances drawn at random, until there are enough."""
    drawn = list(utterances)
    random.Random(seed).shuffle(drawn)
    most = int(hours * 3600 * encoder.sampling_rate / encoder.frame_shift)
    work = functools.partial(
        _frames_of_block, spec=spec, fs=encoder.sampling_rate, reading=reading
    )
    chosen: List[np.ndarray] = []
    faults: List[str] = []
    with progress(what="frames for k-means", unit="frames", total=most) as report:
        blocks = takewhile(
            lambda _: sum(map(len, chosen)) < most, batched(drawn, BLOCK_SIZE)
        )
        for frames, bad in run_blocks(work, blocks, num_jobs(nj)):
            chosen += frames
            faults += bad
            report.update(sum(map(len, frames)))
    if faults:
        logging.warning(first_few("left out of k-means", faults))
    if not chosen:
        raise ValueError("no audio of the training set can be read, see above")
    frames_FD = np.concatenate(chosen)[:most]
    learned_on = {
        "frames": len(frames_FD),
        "hours": len(frames_FD) * encoder.frame_shift / encoder.sampling_rate / 3600,
    }
    return frames_FD, learned_on


def _frames_of_block(
    utterances: Sequence[Utterance],
    spec: Dict[str, Any],
    fs: int,
    reading: Tuple[bool, Channel],
) -> Tuple[List[np.ndarray], List[str]]:
    waveforms, faults = [], []
    for utterance in utterances:
        try:
            waveforms.append(to_pcm16(read_audio(utterance, fs, *reading)))
        except AudioError as error:
            faults.append(str(error))
    encoder = _encoder(json.dumps(spec))
    return [frames.cpu().numpy() for frames in encoder(waveforms)], faults


@functools.lru_cache(maxsize=1)
def _encoder(spec: str) -> Encoder:
    return make_encoder(json.loads(spec), device_of_process())


def _digest(utterances: Sequence[Utterance]) -> str:
    digest = hashlib.sha256()
    for utterance in utterances:
        digest.update(f"{tuple(utterance)}\n".encode())
    return digest.hexdigest()
