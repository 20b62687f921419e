"""What a training of tens of thousands of hours takes, derived from its configurations.

Models are built on the meta device, shapes without memory: no weights are needed. What
comes from a measurement, and what is assumed, are arguments of `Plan`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple

import torch

from espnet_dus.adaptation import adapt
from espnet_dus.checkpoint import parameter_counts
from espnet_dus.ctc import CTCHead
from espnet_dus.flops import Work, training_flops
from espnet_dus.speech_embedder import SpeechEmbedder

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
        ctc: The CTC head.
        positions_per_second: Speech positions.
        frozen_bytes: Of a parameter of the base LM.
    """

    size: str
    name: str
    lm: torch.nn.Module
    embedder: torch.nn.Module
    ctc: torch.nn.Module
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
            embedder = SpeechEmbedder(NUM_MELS, hidden, 1.0, **conf)
            ctc = CTCHead(hidden, num_ctc_units)
        lm = adapt(lm, args.adaptation, **args.adaptation_conf)
        rate = FRAMES_PER_SECOND / SUBSAMPLING[conf["input_layer"]]
        yield Arm(match[1], match[2], lm, embedder, ctc, rate)


def utterance(arm: Arm, plan: Plan) -> Work:
    """Give the work of the mean utterance."""
    speech = round(plan.mean_seconds * arm.positions_per_second)
    text = round(plan.mean_seconds * plan.tokens_per_second)
    return Work.of(speech, text, plan.prompt_tokens)


def tables(arms: List[Arm], plan: Plan) -> Iterator[Tuple[str, str]]:
    """Give the tables of `doc/scaling.md`: (title, Markdown)."""
    yield "FLOPs", _flops_table(arms, plan)
    yield "Memory", _memory_table(arms)
    yield "Time", _time_table(arms, plan)
    yield "Storage", _storage_table(arms, plan)


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
        # float32: parameter, gradient, two moments of AdamW; DDP's buckets
        state, buckets = counts["trained"] * 16, counts["trained"] * 4
        numbers = (frozen, state, buckets, frozen + state + buckets)
        rows.append(
            [arm.size, arm.name, f"{counts['trained'] / 1e6:,.1f}"]
            + [f"{number / 1e9:.2f}" for number in numbers]
        )
    header = ["base LM", "arm", "trained, M", "frozen", "trained and optimizer"]
    return _table([*header, "DDP's buckets", "sum, GB"], rows)


def _time_table(arms: List[Arm], plan: Plan) -> str:
    rows = []
    for arm in arms:
        seconds = plan.hours * 3600
        flops = _total(arm, plan) / plan.mean_seconds * seconds
        gpu_hours = flops / (plan.peak_tflops * 1e12 * plan.mfu) / 3600
        positions = utterance(arm, plan).positions / plan.mean_seconds * seconds
        row = [arm.size, arm.name, f"{positions / 1e9:.2f}", f"{flops / 1e18:,.0f}"]
        row.append(f"{gpu_hours:,.0f}")
        for gpus in plan.gpus:
            hours = gpu_hours / gpus
            row += [f"{hours:,.1f}", f"{plan.hours / hours:,.0f}"]
        rows.append(row)
    header = ["base LM", "arm", "G tokens", "EFLOP", "GPU-hours"]
    for gpus in plan.gpus:
        header += [f"hours on {gpus}", "audio s/s"]
    return _table(header, rows)


def _storage_table(arms: List[Arm], plan: Plan) -> str:
    seconds = plan.hours * 3600
    rows = [
        ["audio", f"{seconds * plan.bytes_per_second / 1e12:.2f} TB"],
        ["transcripts", f"{seconds * plan.tokens_per_second * 4 / 1e9:.1f} GB"],
    ]
    for arm in arms:
        trained = _parameters(arm)["trained"]
        # parameters and two moments; the parameters alone
        rows.append(
            [
                f"{arm.size} {arm.name}: a state to resume from",
                f"{trained * 12 / 1e9:.2f} GB",
            ]
        )
        rows.append(
            [f"{arm.size} {arm.name}: an epoch's model", f"{trained * 4 / 1e9:.2f} GB"]
        )
    return _table(["what", "size"], rows)


def _parameters(arm: Arm) -> Dict[str, int]:
    parts = [parameter_counts(part) for part in (arm.lm, arm.embedder, arm.ctc)]
    return {key: sum(part[key] for part in parts) for key in parts[0]}


def _table(header: List[str], rows: List[List[str]]) -> str:
    lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows]
    return "\n".join(f"|{'|'.join(line)}|" for line in lines)
