"""What a training took: epochs, losses, time and memory, for the comparison of arms."""

import json
from pathlib import Path

import torch
from espnet2.torch_utils.safe_torch_load import safe_torch_load
from espnet2.train.reporter import Reporter

from espnet_dus.io import write_text
from espnet_dus.training.throughput import peak_memory


def write_training_cost(output_dir: Path, trained: bool) -> None:
    """Write `training.json`: what the training took, its resumptions together.

    It holds `epochs`; `curves`, by phase (`train`, `valid`) the loss of each epoch, the
    cross-entropy where there is one; `seconds_per_step`, the mean of all training
    steps, and `wall_seconds`, of training and validation; all from the checkpoint, so
    that no part of an interrupted training is missing. `peak_memory_bytes` is that of
    `peak_memory_of`, the `GPU` or the `process`.

    Args:
        output_dir: The experiment directory.
        trained: Whether this process has trained; if not, its memory does not count.
    """
    checkpoint, path = output_dir / "checkpoint.pth", output_dir / "training.json"
    if not checkpoint.is_file():
        return
    of, peak = "GPU" if torch.cuda.is_initialized() else "process", peak_memory()
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    memory = {k: v for k, v in known.items() if k.startswith("peak_memory")}
    if trained and peak > memory.get("peak_memory_bytes", 0):
        memory = {"peak_memory_bytes": peak, "peak_memory_of": of}
    reporter = Reporter()
    saved = safe_torch_load(checkpoint, map_location="cpu", mmap=True)
    reporter.load_state_dict(saved["reporter"])
    epochs = [phases for _, phases in sorted(reporter.stats.items())]
    phases = [phase for epoch in epochs for phase in epoch.values() if "time" in phase]
    train_seconds = steps = 0
    for epoch in epochs:
        new = epoch["train"]["total_count"] - steps
        train_seconds += epoch["train"]["train_time"] * new
        steps += new
    content = {
        "epochs": len(epochs),
        "curves": {
            phase: [e[phase].get("loss_ce", e[phase].get("loss")) for e in epochs]
            for phase in ("train", "valid")
            if all(phase in e for e in epochs)
        },
        "seconds_per_step": round(train_seconds / steps, 4) if steps else None,
        "wall_seconds": round(sum(p["time"].total_seconds() for p in phases), 1),
        **memory,
    }
    write_text(path, json.dumps(content, indent=2) + "\n")
