"""Lengths in samples, feature frames and speech positions.

samples --frontend--> frames --speech embedder--> speech positions
samples --speech tokenizer--> frames, which are the speech positions
"""

import argparse
import functools
import math
from typing import Any, Dict, List, NamedTuple

from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.utils.get_default_kwargs import get_default_kwargs

from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.data.waveform import parse_fs

DEFAULT_INPUT_LAYER = "conv2d8"  # of the speech embedder of features


class Subsampling(NamedTuple):
    """How a speech embedder makes positions of feature frames.

    Attributes:
        fewest: Frames below the first position: the fewest that give one.
        factor: Frames from one position to the next.
    """

    fewest: int
    factor: int


# by `input_layer` of the speech embedder
SUBSAMPLING = {
    "conv2d": Subsampling(7, 4),
    "conv2d8": Subsampling(15, 8),
    "linear": Subsampling(1, 1),
    "linear2": Subsampling(2, 2),
    "linear4": Subsampling(4, 4),
}


class Framing(NamedTuple):
    """How a frontend makes frames of samples: shift and window in samples."""

    hop: int
    window: int
    center: bool


# Pretrained frontends, all at 50 frames a second of 16 kHz audio, each with its own
# number of frames at the end.
PRETRAINED_FRAMINGS = {
    "s3prl": Framing(320, 1, False),
    "huggingface": Framing(320, 400, False),
    "espnet_ssl": Framing(320, 400, False),
    "whisper": Framing(320, 160, False),
    "ctranslate2_whisper": Framing(320, 1, False),
}

# Sequence lengths are padded to this, so that shapes repeat; see sequence.join.
LENGTH_MULTIPLE = 16

FRAMES_PER_SECOND = 100  # of features on disk: a shift of 10 ms


def takes_tokens(args: argparse.Namespace) -> bool:
    """Return whether the speech input of a model with these options is tokens."""
    return getattr(args, "speech_input", "features") == "tokens"


def tokenizer_info(args: argparse.Namespace) -> TokenizerInfo:
    """Return the description of the speech tokenizer of a model that takes tokens.

    Raises:
        ValueError: The options name none.
    """
    if args.speech_tokenizer is None:
        raise ValueError(
            "speech_input: tokens needs a tokenizer's directory (--speech_tokenizer): "
            "run the recipe with --feats_type tokens, or train on features with "
            "another --dus_config"
        )
    return _read_info(args.speech_tokenizer)


@functools.lru_cache(maxsize=1)  # lengths are computed for each utterance
def _read_info(directory: str) -> TokenizerInfo:
    return TokenizerInfo.read(directory)


def subsampling(input_layer: str) -> Subsampling:
    """Return how an `input_layer` subsamples frames.

    Raises:
        ValueError: It is unknown.
    """
    if input_layer not in SUBSAMPLING:
        raise ValueError(
            f"speech_embedder_conf: input_layer {input_layer!r} is not one of "
            f"{', '.join(SUBSAMPLING)}"
        )
    return SUBSAMPLING[input_layer]


def sampling_rate(args: argparse.Namespace) -> int:
    """Return the rate (Hz) of the audio that a model with these options takes."""
    if takes_tokens(args):
        return tokenizer_info(args).sampling_rate
    return parse_fs(args.frontend_conf.get("fs", 16000))


def input_rate(args: argparse.Namespace) -> float:
    """Return the samples, frames or tokens of a second that the model is trained on."""
    if takes_tokens(args):
        return tokenizer_info(args).frames_per_second
    if args.input_size is not None:
        return FRAMES_PER_SECOND
    return sampling_rate(args)


def min_length(args: argparse.Namespace) -> int:
    """Return the fewest samples, or frames, that give one speech position."""
    if takes_tokens(args):
        return 1
    frames = _subsampling(args).fewest
    if args.input_size is not None:
        return frames
    # the transform of a centred window takes more than half of it
    centred = any(framing.center for framing in _framings(args))
    return _samples(args, frames + centred)


def speech_positions(args: argparse.Namespace, num_samples: int) -> int:
    """Return the number of speech positions of samples, with these options.

    For tokens: before repeats are removed.
    """
    shift, framings = _shift(args), _framings(args)
    frames = min(
        (1 + (num_samples - (0 if center else window)) // hop) * (hop // shift)
        for hop, window, center in framings
    )
    return _positions_of_frames(args, frames)


def input_positions(args: argparse.Namespace, length: int) -> int:
    """Return the number of speech positions of an input: samples, frames or tokens."""
    if takes_tokens(args) or args.input_size is not None:
        return _positions_of_frames(args, length)
    return speech_positions(args, length)


def _positions_of_frames(args: argparse.Namespace, frames: int) -> int:
    fewest, factor = _subsampling(args)
    return max(0, (frames - fewest) // factor + 1)


def samples_of_positions(args: argparse.Namespace, positions: int) -> int:
    """Return the fewest samples that become this number of speech positions."""
    fewest, factor = _subsampling(args)
    return _samples(args, fewest + (positions - 1) * factor)


def _samples(args: argparse.Namespace, frames: int) -> int:
    """Return the fewest samples of a number of frames."""
    shift = _shift(args)
    return max(
        (-(-frames * shift // hop) - 1) * hop + (0 if center else window)
        for hop, window, center in _framings(args)
    )


def _subsampling(args: argparse.Namespace) -> Subsampling:
    if takes_tokens(args):
        return Subsampling(1, 1)
    conf = args.speech_embedder_conf
    return subsampling(conf.get("input_layer", DEFAULT_INPUT_LAYER))


def _shift(args: argparse.Namespace) -> int:
    """Return the samples from one frame to the next; a fused frontend's common ones."""
    return math.gcd(*(framing.hop for framing in _framings(args)))


def _framings(args: argparse.Namespace) -> List[Framing]:
    """Return how the frontend makes frames; a fused one has several ways."""
    if takes_tokens(args):  # the last frame may be incomplete
        info = tokenizer_info(args)
        return [Framing(round(info.sampling_rate / info.frames_per_second), 1, False)]
    parts = [{**args.frontend_conf, "frontend_type": args.frontend}]
    if args.frontend == "fused":
        parts = args.frontend_conf["frontends"]
    return [_framing(part) for part in parts]


def _framing(conf: Dict[str, Any]) -> Framing:
    if conf["frontend_type"] in PRETRAINED_FRAMINGS:
        return PRETRAINED_FRAMINGS[conf["frontend_type"]]
    conf = {**get_default_kwargs(DefaultFrontend), **conf}
    return Framing(conf["hop_length"], conf["n_fft"], conf["center"])


class PositionTimes(NamedTuple):
    """Speech positions in time: position i is centred on `first + i * step`.

    Attributes:
        first: Centre of the audio below the first speech position, in seconds.
        step: Time from one position to the next, in seconds.
    """

    first: float
    step: float


def position_times(args: argparse.Namespace) -> PositionTimes:
    """Return where in the audio each speech position of a model with these options is.

    A position covers the frames below its convolutions' kernels, and a frame the
    samples of its window; each is placed at its centre. Where windows are unknown, as
    for features on disk and speech tokens, a frame is placed at the middle of its
    shift.
    """
    fewest, factor = _subsampling(args)
    if takes_tokens(args) or args.input_size is not None:
        shift, middle = 1 / input_rate(args), 0.5 / input_rate(args)
    else:
        fs = sampling_rate(args)
        _, window, center = _framings(args)[0]
        shift, middle = _shift(args) / fs, 0.0 if center else window / 2 / fs
    return PositionTimes((fewest - 1) / 2 * shift + middle, factor * shift)
