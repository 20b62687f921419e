"""The parts of a model as a list, as text and as a picture."""

import itertools
from pathlib import Path
from typing import List, NamedTuple, Sequence, Tuple

import torch

from espnet_dus.io import drawing
from espnet_dus.model.checkpoint import parameter_counts
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.upscaling import inserted_layers


class StackLayer(NamedTuple):
    """One part of the model, from the input up.

    Attributes:
        name: Name of the part.
        trained: Number of trained parameters.
        frozen: Number of frozen parameters.
        inserted: Whether it is an added layer.
    """

    name: str
    trained: int
    frozen: int
    inserted: bool = False


def describe(model: ESPnetDUSModel) -> List[StackLayer]:
    """List the parts of a model in the order in which speech passes them."""

    def part(name: str, module: torch.nn.Module, inserted: bool = False) -> StackLayer:
        counts = parameter_counts(module)
        return StackLayer(name, counts["trained"], counts["frozen"], inserted)

    inserted = inserted_layers(model.lm)
    stack = [part("speech embedder", model.speech_embedder)]
    stack.append(part("token embeddings", model.lm.get_input_embeddings()))
    num_base = 0
    for index, layer in enumerate(model.lm.model.layers):
        if index in inserted:
            kind = model.lm.config.depth_up_scaling["kind"]
            stack.append(part(f"added {kind}", layer, True))
        else:
            stack.append(part(f"base layer {num_base}", layer))
            num_base += 1
        if model.ctc is not None and index == model.ctc_layer:
            stack.append(part("CTC head", model.ctc))
    stack.append(part("norm", model.lm.model.norm))
    head = model.lm.lm_head
    if head.weight is model.lm.get_input_embeddings().weight:
        stack.append(StackLayer("LM head (the token embeddings)", 0, 0))
    else:
        stack.append(part("LM head", head))
    return stack


def stack_text(model: ESPnetDUSModel) -> str:
    """Draw a model, input at the bottom; neighbours that are alike share a line.

    Args:
        model: Of any arm.

    Returns:
        Several lines.
    """
    stack = describe(model)
    rows = [_row(list(run)) for _, run in itertools.groupby(stack, _alike)]
    width = max(len(name) for name, _, _ in rows)
    lines = [f"  {'text'.center(width)}"]
    for name, parameters, inserted in reversed(rows):
        mark = "+" if inserted else "|"
        lines.append(f"{mark} {name.ljust(width)} {parameters}".rstrip())
    trained = sum(part.trained for part in stack)
    total = trained + sum(part.frozen for part in stack)
    lines += [
        f"  {'speech'.center(width)}",
        "",
        f"Trained: {trained:,} parameters, {trained / total:.1%} of {total:,}.",
    ]
    return "\n".join(lines) + "\n"


def _alike(part: StackLayer) -> Tuple:
    base_layer = part.name.startswith("base layer")
    return base_layer or part.name, part.trained > 0, part.frozen > 0


def _row(parts: Sequence[StackLayer]) -> Tuple[str, str, bool]:
    """Return name, parameters and `inserted` of a run of parts that are alike."""
    first, last = parts[0], parts[-1]
    name = first.name
    if first.name != last.name:  # base layers, which are numbered
        name = f"base layers {first.name.split()[-1]} to {last.name.split()[-1]}"
    elif len(parts) > 1:
        name = f"{len(parts)} x {first.name}"
    numbers: List[str] = []
    for what in ("trained", "frozen"):
        if number := sum(getattr(part, what) for part in parts):
            numbers.append(f"{number:14,} {what}")
    return name, "".join(numbers), first.inserted


def draw(stack: Sequence[StackLayer], path: Path) -> Path:
    """Draw the stack, input at the bottom; what is trained in colour."""
    from matplotlib.patches import Patch

    colors = {
        "added, trained": "#d1495b",
        "trained": "#edae49",
        "base LM, frozen": "#c9d6df",
    }
    with drawing(path, 6, 0.28 * len(stack) + 1) as axes:
        for y, part in enumerate(stack):
            what = "trained" if part.trained else "base LM, frozen"
            color = colors["added, trained" if part.inserted else what]
            axes.barh(y, 1, height=0.85, color=color, edgecolor="white")
            count = part.trained or part.frozen
            label = f"{part.name}   {count / 1e6:.2f} M" if count else part.name
            axes.text(0.5, y, label, ha="center", va="center", fontsize=8)
        axes.legend(
            handles=[Patch(color=color, label=what) for what, color in colors.items()],
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=3,
            fontsize=8,
            frameon=False,
        )
        axes.set_axis_off()
        axes.set_ylim(-0.5, len(stack) - 0.5)
    return path
