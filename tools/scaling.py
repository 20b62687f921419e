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
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from espnet2.utils.get_default_kwargs import get_default_kwargs

from espnet_dus.bin import user_errors
from espnet_dus.data.lengths import EMBEDDER_CONF, takes_tokens
from espnet_dus.model.adaptation import adapt
from espnet_dus.model.checkpoint import parameter_counts
from espnet_dus.model.ctc_head import CTCHead
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.speech_embedder import SpeechEmbedder
from espnet_dus.model.token_embedder import TokenEmbedder
from espnet_dus.model.upscaling import is_above_base_layer
from espnet_dus.training.flops import Work, training_flops

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
NUM_MELS = 80
FRAMES_PER_SECOND = 100
SUBSAMPLING = {"conv2d": 4, "conv2d8": 8}


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


class Arm(NamedTuple):
    """A configuration on the meta device.

    Attributes:
        size: Of the base LM, a key of `BASE_LMS`.
        name: Of the arm.
        lm: Adapted.
        embedder: The speech embedder.
        ctc: The CTC head, or None.
        positions_per_second: Speech positions.
        frozen_bytes: Of a parameter of the base LM.
    """

    size: str
    name: str
    lm: torch.nn.Module
    embedder: torch.nn.Module
    ctc: Optional[torch.nn.Module]
    positions_per_second: float
    frozen_bytes: int = 2


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
                embedder, rate = TokenEmbedder(OPUSLM, hidden, **conf), 50.0
            else:
                embedder = SpeechEmbedder(NUM_MELS, hidden, 1.0, **conf)
                layer = {**EMBEDDER_CONF, **conf}["input_layer"]
                rate = FRAMES_PER_SECOND / SUBSAMPLING[layer]
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


def tables(arms: List[Arm], plan: Plan) -> Iterator[Tuple[str, str]]:
    """Return the tables of `doc/scaling.md`: (title, Markdown)."""
    yield "Operations", _flops_table(arms, plan)
    yield "Memory without activations", _memory_table(arms)
    yield "Time of an epoch", _time_table(arms, plan)
    yield "Data", _data_table(plan)
    yield "Checkpoints", _storage_table(arms)


def _total(arm: Arm, plan: Plan, which: str = "total") -> float:
    parts = training_flops(arm.lm, arm.embedder, arm.ctc, utterance(arm, plan))
    return sum(getattr(part, which) for part in parts.values())


def _flops_table(arms: List[Arm], plan: Plan) -> str:
    full = {arm.size: _total(arm, plan) for arm in arms if arm.name == "full"}
    rows = []
    for arm in arms:
        positions = utterance(arm, plan).positions
        forward, backward = (
            _total(arm, plan, which) / positions / 1e9
            for which in ("forward", "backward")
        )
        total = _total(arm, plan)
        rows.append(
            [
                arm.size,
                arm.name,
                f"{forward:.2f}",
                f"{backward:.2f}",
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
        frozen = counts["frozen"] * arm.frozen_bytes
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
        flops = _total(arm, plan) / plan.mean_seconds * seconds
        gpu_seconds = flops / (plan.peak_tflops * 1e12 * plan.mfu)
        rows.append(
            [arm.size, arm.name, f"{positions / 1e9:.2f}", f"{flops / 1e18:.1f}"]
            + [f"{gpu_seconds / 3600:.1f}", f"{seconds / gpu_seconds:,.0f}"]
        )
        for gpus in plan.gpus:
            rate = seconds * plan.bytes_per_second / gpu_seconds * gpus
            rows[-1] += [f"{gpu_seconds / 3600 / gpus:.2f}", f"{rate / 1e6:,.0f}"]
    header = ["base LM", "arm", "G tokens", "EFLOP", "GPU-hours", "audio s/s of a GPU"]
    for gpus in plan.gpus:
        header += [f"hours on {gpus}", f"MB/s for {gpus}"]
    return _table(header, rows)


def _data_table(plan: Plan) -> str:
    seconds = plan.hours * 3600
    # four bytes to a token: what it stands for in English text
    rows = [
        ["audio", f"{plan.bytes_per_second:,.0f} B/s"],
        ["transcripts", f"{plan.tokens_per_second * 4:.1f} B/s"],
    ]
    for row, rate in zip(rows, (plan.bytes_per_second, plan.tokens_per_second * 4)):
        row.append(f"{seconds * rate / 1e9:,.1f}")
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
    return parser


@user_errors
def main(cmd=None):
    """Print the tables."""
    options = vars(get_parser().parse_args(cmd))
    config_dir = options.pop("config_dir")
    plan = Plan(**options)
    arms = list(load_arms(config_dir, plan.num_ctc_units))
    for title, table in tables(arms, plan):
        print(f"### {title}\n\n{table}\n")


if __name__ == "__main__":
    main()
