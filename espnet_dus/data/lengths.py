"""Lengths: samples, feature frames and speech positions, one from another.

samples --frontend--> frames --speech embedder--> speech positions
"""

import argparse
from typing import NamedTuple, Tuple

import humanfriendly
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.utils.get_default_kwargs import get_default_kwargs

# Options of the speech embedder and their defaults.

EMBEDDER_CONF = {"input_layer": "conv2d8", "channels": 256, "dropout_rate": 0.1}

# `input_layer` of the speech embedder -> fewest frames that give one position
FEWEST_FRAMES = {"conv2d": 7, "conv2d8": 15}

# Sequence lengths are padded to this, so that shapes repeat; see sequence.join.
LENGTH_MULTIPLE = 16

FRAMES_PER_SECOND = 100  # where the model is given features: a shift of 10 ms


def takes_tokens(args: argparse.Namespace) -> bool:
    """Return whether the speech input of a model with these options is tokens."""
    return getattr(args, "speech_input", "features") == "tokens"


def fewest_frames(input_layer: str) -> int:
    """Give the fewest frames that give one speech position.

    Raises:
        ValueError: An unknown `input_layer`.
    """
    if input_layer not in FEWEST_FRAMES:
        raise ValueError(
            f"speech_embedder_conf: input_layer {input_layer!r} is not one of "
            f"{', '.join(FEWEST_FRAMES)}"
        )
    return FEWEST_FRAMES[input_layer]


def num_positions(input_layer: str, frames: int) -> int:
    """Give the speech positions of some frames.

    Raises:
        ValueError: An unknown `input_layer`.
    """
    # each convolution has kernel 3 and stride 2
    for _ in range(fewest_frames(input_layer).bit_length() - 1):
        frames = (frames - 1) // 2
    return max(frames, 0)


def sampling_rate(args: argparse.Namespace) -> int:
    """Give the rate (Hz) of the audio that a model with these options takes."""
    fs = args.frontend_conf.get("fs", 16000)
    return humanfriendly.parse_size(fs) if isinstance(fs, str) else fs


def min_length(args: argparse.Namespace) -> int:
    """Return the fewest samples, or frames, that give one speech position."""
    if takes_tokens(args):
        return 1
    embedder_conf = {**EMBEDDER_CONF, **args.speech_embedder_conf}
    frames = fewest_frames(embedder_conf["input_layer"])
    if args.input_size is not None:
        return frames
    hop, window, center = _framing(args)
    return frames * hop if center else (frames - 1) * hop + window


def speech_positions(args: argparse.Namespace, num_samples: int) -> int:
    """Give the speech positions that samples become, with these options."""
    hop, window, center = _framing(args)
    frames = 1 + (num_samples if center else num_samples - window) // hop
    embedder_conf = {**EMBEDDER_CONF, **args.speech_embedder_conf}
    return num_positions(embedder_conf["input_layer"], frames)


def samples_of_positions(args: argparse.Namespace, positions: int) -> int:
    """Give the fewest samples that become so many speech positions."""
    hop, window, center = _framing(args)
    embedder_conf = {**EMBEDDER_CONF, **args.speech_embedder_conf}
    # the first position takes 2n - 1 frames, each further one n
    frames = fewest_frames(embedder_conf["input_layer"])
    frames += (positions - 1) * (frames + 1) // 2
    return (frames - 1) * hop + (0 if center else window)


def _framing(args: argparse.Namespace) -> Tuple[int, int, bool]:
    conf = {**get_default_kwargs(DefaultFrontend), **args.frontend_conf}
    return conf["hop_length"], conf["n_fft"], conf["center"]


class PositionTimes(NamedTuple):
    """When the audio is heard: position i is centred on `first + i * step`.

    Attributes:
        first: Centre of what the first speech position hears, in seconds.
        step: Time from one position to the next, in seconds.
    """

    first: float
    step: float


def position_times(args: argparse.Namespace) -> PositionTimes:
    """Return where in the audio each speech position of a model with these options is.

    A position hears the frames below its convolutions' kernels, and a frame the samples
    of its window; both are centred on what they stand for. Of a model that is given
    features, whose windows are unknown, each frame is taken for the middle of its
    shift.
    """
    embedder_conf = {**EMBEDDER_CONF, **args.speech_embedder_conf}
    frames = fewest_frames(embedder_conf["input_layer"])  # that the first one hears
    if args.input_size is not None:
        shift, middle = 1 / FRAMES_PER_SECOND, 0.5 / FRAMES_PER_SECOND
    else:
        fs = sampling_rate(args)
        hop, window, center = _framing(args)
        shift, middle = hop / fs, 0.0 if center else window / 2 / fs
    step = (frames + 1) // 2 * shift
    return PositionTimes((frames - 1) / 2 * shift + middle, step)
