"""Learning rates of parts: pre-trained weights need a lower one than new parameters."""

from typing import Dict, List

import torch


def is_part(name: str, prefix: str) -> bool:
    """Return whether a parameter is the one, or in the module, that `prefix` names."""
    return name == prefix or name.startswith(prefix + ".")


def scale_learning_rates(
    optimizer: torch.optim.Optimizer,
    parameters: Dict[str, torch.nn.Parameter],
    scales: Dict[str, float],
) -> None:
    """Multiply the learning rates of some parameters.

    Schedulers scale the rates of an optimizer's groups, so the proportions remain.

    Args:
        optimizer: A new one. Its groups are split.
        parameters: What it trains, by name.
        scales: Factors by prefix of names, as in `freeze_param`. The longest matching
            prefix counts; without one the factor is 1.

    Raises:
        ValueError: A prefix matches no trained parameter, or a factor is not above
            zero.
    """
    scale_of: Dict[int, float] = {}
    for prefix in sorted(scales, key=len):
        scale = scales[prefix]
        if isinstance(scale, str) or not scale > 0:
            raise ValueError(f"lr_scale: {prefix}={scale!r} is not a number above 0")
        found = [p for name, p in parameters.items() if is_part(name, prefix)]
        if not found:
            raise ValueError(f"lr_scale: {prefix!r} matches no trained parameter")
        scale_of.update((id(parameter), scale) for parameter in found)
    groups: List[dict] = []
    for group in optimizer.param_groups:
        parts: Dict[float, List[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(scale_of.get(id(parameter), 1.0), []).append(parameter)
        for scale, part in parts.items():
            groups.append({**group, "params": part, "lr": group["lr"] * scale})
    optimizer.param_groups[:] = groups
