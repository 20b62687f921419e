"""The stack of a model as text: what stands where, and how much of it is trained."""

import itertools
from typing import List, Sequence, Tuple

from espnet_dus.evaluation.identity_check import StackLayer, describe
from espnet_dus.model.espnet_model import ESPnetDUSModel


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
    """Give name, parameters and whether they are inserted of parts that are alike."""
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
