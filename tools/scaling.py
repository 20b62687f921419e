#!/usr/bin/env python3
"""Derive what a long training takes: the tables of doc/scaling.md.

Models are built on the meta device, shapes without memory: no weights are needed. What
comes from a measurement, and what is assumed, are options.

    python tools/scaling.py --gpus 8 64 --mfu 0.35
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from espnet2.utils.get_default_kwargs import get_default_kwargs

from espnet_dus.bin import user_errors
from espnet_dus.data.lengths import (
    DEFAULT_INPUT_LAYER,
    FRAMES_PER_SECOND,
    subsampling,
    takes_tokens,
)
from espnet_dus.model.adaptation import adapt
from espnet_dus.model.checkpoint import parameter_counts
from espnet_dus.model.ctc_head import CTCHead
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.speech_embedder import SpeechEmbedder
from espnet_dus.model.token_embedder import TokenEmbedder
from espnet_dus.model.upscaling import is_above_base_layer
from espnet_dus.training.flops import Flops, Work, training_flops

# config.json of the base LMs, as published
BASE_LMS = {
    "360m": dict(
        hidden_size=960,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        intermediate_size=2560,
    ),
    "1.7b": dict(
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
        intermediate_size=8192,
    ),
}
OPUSLM = [5000] + [1024] * 8  # tokens of each stream; 50 frames a second
TOKEN_RATE = 50
XEUS_PARAMETERS = 577e6  # OpusLM's encoder; each takes 2 operations for a frame
# Seconds of audio that a CPU core tokenizes in a second (benchmarks/speech_tokens.py)
CPU_RATES = {"logmel": 1726, "whisper_tiny_en": 57}
BLOCK = 512  # bytes; files in a tar are padded to it
# The paper's methods beside ours, in the table of tokens and features.
COMPARED = ("interleaved", "e_branchformer_interleaved", "encoder")
NUM_MELS = 80


@dataclass
class Plan:
    """The data, the hardware, and how well it is used.

    Attributes:
        hours: Of audio in an epoch.
        mean_seconds: Of an utterance.
        tokens_per_second: Tokens of a transcript, by second of audio.
        prompt_tokens: Of the prompt.
        num_ctc_units: Blank included.
        peak_tflops: Of a GPU, dense bfloat16.
        mfu: The share of it that the model's own FLOPs reach.
        gpus: Numbers of GPUs.
        bytes_per_second: Of stored audio.
        context: Positions of a batch of one GPU.
        contexts: Batches of that size in an update, of all GPUs together.
        updates: Of a training.
    """

    hours: float
    mean_seconds: float
    tokens_per_second: float
    prompt_tokens: int
    num_ctc_units: int
    peak_tflops: float
    mfu: float
    gpus: List[int]
    bytes_per_second: float
    context: int
    contexts: int
    updates: int


class Arm(NamedTuple):
    """A configuration on the meta device.

    Attributes:
        size: Of the base LM, a key of `BASE_LMS`.
        name: Of the arm.
        lm: Adapted.
        embedder: The speech embedder.
        ctc: The CTC head, or None.
        positions_per_second: Speech positions.
    """

    size: str
    name: str
    lm: torch.nn.Module
    embedder: torch.nn.Module
    ctc: Optional[torch.nn.Module]
    positions_per_second: float


def load_arms(config_dir: Path, num_ctc_units: int) -> Iterator[Arm]:
    """Build the arms that the configurations of a directory describe.

    Raises:
        ValueError: It holds no `train_dus_<size>_<arm>.yaml`.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from espnet_dus.task import DUSTask

    pattern = re.compile(rf"train_dus_({'|'.join(BASE_LMS)})_(.+)\.yaml")
    found = list(filter(None, (pattern.match(p.name) for p in config_dir.iterdir())))
    if not found:
        raise ValueError(
            f"{config_dir}: expected files such as train_dus_360m_lora.yaml"
        )
    for match in sorted(found, key=lambda m: (list(BASE_LMS).index(m[1]), m[2])):
        options = ["--config", str(config_dir / match[0]), "--base_lm", "none"]
        args = DUSTask.get_parser().parse_args([*options, "--output_dir", "none"])
        config = LlamaConfig(
            vocab_size=49152, tie_word_embeddings=True, **BASE_LMS[match[1]]
        )
        with torch.device("meta"):
            lm = LlamaForCausalLM(config).to(torch.bfloat16)
            hidden, conf = config.hidden_size, args.speech_embedder_conf
            if takes_tokens(args):
                embedder, rate = TokenEmbedder(OPUSLM, hidden, **conf), TOKEN_RATE
            else:
                embedder = SpeechEmbedder(NUM_MELS, hidden, 1.0, **conf)
                layer = conf.get("input_layer", DEFAULT_INPUT_LAYER)
                rate = FRAMES_PER_SECOND / subsampling(layer).factor
        lm = adapt(lm, args.adaptation, **args.adaptation_conf)
        model_conf = {**get_default_kwargs(ESPnetDUSModel), **args.model_conf}
        ctc = None
        if model_conf["ctc_weight"] > 0:
            has_norm = is_above_base_layer(lm, model_conf["ctc_layer"])
            with torch.device("meta"):
                ctc = CTCHead(hidden, num_ctc_units, has_norm)
        yield Arm(match[1], match[2], lm, embedder, ctc, rate)


def utterance(arm: Arm, plan: Plan) -> Work:
    """Return the work of the mean utterance."""
    speech = round(plan.mean_seconds * arm.positions_per_second)
    text = round(plan.mean_seconds * plan.tokens_per_second)
    return Work.of(speech, text, plan.prompt_tokens)


def stored_bytes(arm: Arm, plan: Plan) -> float:
    """Return the bytes that a second of audio takes in the shards that an arm reads."""
    if isinstance(arm.embedder, TokenEmbedder):
        return shard_bytes(plan.mean_seconds) / plan.mean_seconds
    return plan.bytes_per_second


def shard_bytes(seconds: float) -> int:
    """Return the bytes of an utterance in a tar file of token shards.

    That is a file of 16-bit integers, with a header of 128 bytes in NumPy's format, and
    its manifest, of less than a block; each has a header of one block.
    """
    array = 128 + 2 * len(OPUSLM) * round(seconds * TOKEN_RATE)
    return 3 * BLOCK + -(-array // BLOCK) * BLOCK


def tables(
    arms: List[Arm], plan: Plan, ours: Sequence[Arm] = ()
) -> Iterator[Tuple[str, str]]:
    """Return the tables of `doc/scaling.md`: (title, Markdown).

    `ours` is compared with arms of the paper in the table of tokens and features.
    """
    compared = [arm for arm in (*arms, *ours) if arm.name in COMPARED]
    yield "Speech tokens beside features", _comparison_table(compared, plan)
    yield "Tokenizing", _tokenizing_table(plan)
    yield "Operations", _flops_table(arms, plan)
    yield "Memory without activations", _memory_table(arms)
    yield "Time of an epoch", _time_table(arms, plan)
    yield "Data", _data_table(plan)
    yield "Checkpoints", _storage_table(arms)


def _flops(arm: Arm, plan: Plan) -> Flops:
    return training_flops(arm.lm, arm.embedder, arm.ctc, utterance(arm, plan))


def _flops_table(arms: List[Arm], plan: Plan) -> str:
    full = {arm.size: sum(_flops(arm, plan)) for arm in arms if arm.name == "full"}
    rows = []
    for arm in arms:
        flops, positions = _flops(arm, plan), utterance(arm, plan).positions
        total = sum(flops)
        rows.append(
            [
                arm.size,
                arm.name,
                f"{flops.forward / positions / 1e9:.2f}",
                f"{flops.backward / positions / 1e9:.2f}",
                f"{total / positions / 1e9:.2f}",
                f"{total / full[arm.size]:.0%}" if arm.size in full else "-",
                f"{total / plan.mean_seconds * 3600 / 1e15:.2f}",
            ]
        )
    header = ["base LM", "arm", "forward", "backward", "GFLOP per token", "of full"]
    return _table([*header, "PFLOP per hour of audio"], rows)


def _memory_table(arms: List[Arm]) -> str:
    rows = []
    for arm in arms:
        counts = _parameters(arm)
        frozen = 2 * counts["frozen"]  # bfloat16
        # float32: parameter, gradient, two moments of AdamW; DDP's buckets; and the
        # bfloat16 copy that autocast makes of a weight
        numbers = [frozen] + [counts["trained"] * n for n in (16, 4, 2)]
        numbers.append(sum(numbers))
        rows.append(
            [arm.size, arm.name, f"{counts['trained'] / 1e6:,.1f}"]
            + [f"{number / 1e9:.2f}" for number in numbers]
        )
    header = ["base LM", "arm", "trained, M", "frozen", "trained and optimizer"]
    return _table([*header, "DDP's buckets", "autocast", "sum, GB"], rows)


def _time_table(arms: List[Arm], plan: Plan) -> str:
    rows = []
    for arm in arms:
        seconds = plan.hours * 3600
        positions = utterance(arm, plan).positions / plan.mean_seconds * seconds
        flops = sum(_flops(arm, plan)) / plan.mean_seconds * seconds
        gpu_seconds = flops / (plan.peak_tflops * 1e12 * plan.mfu)
        rows.append(
            [arm.size, arm.name, f"{positions / 1e9:.2f}", f"{flops / 1e18:.1f}"]
            + [f"{gpu_seconds / 3600:.1f}", f"{seconds / gpu_seconds:,.0f}"]
        )
        for gpus in plan.gpus:
            rate = seconds * stored_bytes(arm, plan) / gpu_seconds * gpus
            rows[-1] += [f"{gpu_seconds / 3600 / gpus:.2f}", f"{rate / 1e6:,.0f}"]
    header = ["base LM", "arm", "G tokens", "EFLOP", "GPU-hours", "audio s/s of a GPU"]
    for gpus in plan.gpus:
        header += [f"hours on {gpus}", f"MB/s for {gpus}"]
    return _table(header, rows)


def _comparison_table(arms: List[Arm], plan: Plan) -> str:
    rows = []
    for arm in sorted(arms, key=lambda a: (list(BASE_LMS).index(a.size), a.name)):
        work, flops = utterance(arm, plan), sum(_flops(arm, plan))
        rate = plan.peak_tflops * 1e12 * plan.mfu * work.positions / flops
        of_pass = plan.hours * 3600 / plan.mean_seconds * work.positions
        of_training = plan.updates * plan.contexts * plan.context
        is_tokens = isinstance(arm.embedder, TokenEmbedder)
        rows.append(
            [arm.size, arm.name, "tokens" if is_tokens else "features"]
            + [f"{arm.positions_per_second:g}"]
            + [f"{plan.context / work.positions:.1f}", f"{rate:,.0f}"]
            + [f"{of_pass / 1e9:.2f}", f"{of_pass / rate / 3600:.1f}"]
            + [f"{of_training / of_pass:.1f}", f"{of_training / rate / 3600:,.0f}"]
        )
    header = ["base LM", "arm", "input", "positions/s", "utterances in a context"]
    header += ["tokens/s of a GPU", "G tokens of a pass", "GPU-hours of a pass"]
    return _table([*header, "passes of a training", "GPU-hours of a training"], rows)


def _tokenizing_table(plan: Plan) -> str:
    gpu = plan.peak_tflops * 1e12 * plan.mfu / (2 * XEUS_PARAMETERS * TOKEN_RATE)
    rates = [("opuslm, XEUS alone", "GPU", gpu)]
    rates += [(name, "CPU core", rate) for name, rate in CPU_RATES.items()]
    rows = [
        [name, unit, f"{rate:,.0f}", f"{plan.hours / rate:,.1f}"]
        for name, unit, rate in rates
    ]
    return _table(["tokenizer", "on a", "s of audio a second", "hours of it"], rows)


def _data_table(plan: Plan) -> str:
    num_tokens = TOKEN_RATE * len(OPUSLM)
    rates = {
        "audio, FLAC": plan.bytes_per_second,
        "speech tokens, Kaldi ark": 5 * num_tokens,  # a byte of type for each int32
        "speech tokens, shards": shard_bytes(plan.mean_seconds) / plan.mean_seconds,
        # four bytes of English text to a token
        "transcripts": plan.tokens_per_second * 4,
    }
    rows = [
        [what, f"{rate:,.1f} B/s", f"{plan.hours * 3600 * rate / 1e9:,.1f}"]
        for what, rate in rates.items()
    ]
    return _table(["what", "rate", "GB"], rows)


def _storage_table(arms: List[Arm]) -> str:
    rows = []
    for arm in arms:
        trained = _parameters(arm)["trained"]
        # float32: parameters and two moments of AdamW; the parameters alone
        sizes = [f"{trained * n / 1e9:.2f}" for n in (12, 4)]
        rows.append([arm.size, arm.name, *sizes])
    header = ["state to resume from, GB", "model of an epoch, GB"]
    return _table(["base LM", "arm", *header], rows)


def _parameters(arm: Arm) -> Dict[str, int]:
    parts = [arm.lm, arm.embedder] + [arm.ctc] * (arm.ctc is not None)
    parts = [parameter_counts(part) for part in parts]
    return {key: sum(part[key] for part in parts) for key in parts[0]}


def _table(header: List[str], rows: List[List[str]]) -> str:
    lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows]
    return "\n".join(f"|{'|'.join(line)}|" for line in lines)


def get_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--config_dir",
        type=Path,
        default=Path("egs2/TEMPLATE/dus1/conf/tuning/paper"),
        help="holds a train_dus_<size>_<arm>.yaml for each arm",
    )
    add(
        "--ours_dir",
        type=Path,
        default=Path("egs2/TEMPLATE/dus1/conf/tuning/ours"),
        help="the same for the arms of features in the table of both",
    )
    add("--hours", type=float, default=48000, help="of audio in an epoch")
    add("--mean_seconds", type=float, default=12.0, help="mean length of an utterance")
    add(
        "--tokens_per_second",
        type=float,
        default=2.87,
        help="of transcripts, by second of audio; LibriSpeech in lower case",
    )
    add("--prompt_tokens", type=int, default=3, help="tokens of the prompt")
    add(
        "--num_ctc_units",
        type=int,
        default=16000,
        help="of a CTC head, blank included; the LLM's tokens in 8 M words of English",
    )
    add("--peak_tflops", type=float, default=989.0, help="of a GPU, dense bfloat16")
    add("--mfu", type=float, default=0.35, help="share of the peak that is reached")
    add("--gpus", type=int, nargs="+", default=[8, 64], help="numbers of GPUs")
    add(
        "--bytes_per_second",
        type=float,
        default=18300.0,
        help="of stored audio; LibriSpeech's FLAC",
    )
    add("--context", type=int, default=8192, help="positions of a batch of one GPU")
    add(
        "--contexts",
        type=int,
        default=16,
        help="batches in an update, of all GPUs together: tokens_per_update 131072",
    )
    add("--updates", type=int, default=500000, help="of a training, as ESPnet's")
    return parser


@user_errors
def main(cmd=None):
    """Print the tables."""
    options = vars(get_parser().parse_args(cmd))
    directories = options.pop("config_dir"), options.pop("ours_dir")
    plan = Plan(**options)
    arms, ours = (list(load_arms(d, plan.num_ctc_units)) for d in directories)
    for title, table in tables(arms, plan, ours):
        print(f"### {title}\n\n{table}\n")


if __name__ == "__main__":
    main()
