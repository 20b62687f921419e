"""The precision a trained model is run in."""

import warnings
from typing import List

import torch

from espnet_dus.model.base_lm import resolve_dtype
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.upscaling import inserted_layers

DTYPES = ("float32", "bfloat16", "int8")
# Linear maps that int8 leaves alone. The greatest activations, a few features of a few
# positions, enter down_proj: with it, a word error rate on AN4 was 44, without, 31.
KEPT = ("lora_", "down_proj")


def set_precision(model: ESPnetDUSModel, dtype: str) -> None:
    """Change the precision of the base LM; what was inserted stays float32.

    Args:
        model: Loaded. Changed in place.
        dtype: `float32`, `bfloat16`, or `int8`: the base LM's linear maps, but for
            `down_proj`, have weights and inputs of 8 bits (torch's dynamic
            quantization; on a CPU), and what is between them is bfloat16 where the
            hardware computes in it, else float32.

    Raises:
        ValueError: Another dtype, or `int8` on a GPU.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    if dtype == "int8":
        if model.lm.device.type != "cpu":
            raise ValueError("dtype: int8 is for CPUs; on a GPU take bfloat16")
        _quantize(model.lm)
    model.compute_dtype = resolve_dtype("auto" if dtype == "int8" else dtype)
    inserted = inserted_layers(model.lm).values()
    kept = {id(p) for layer in inserted for p in layer.parameters()}
    for parameter in model.lm.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(model.compute_dtype)


class _Linear8(torch.ao.nn.quantized.dynamic.Linear):
    """A linear map with 8-bit weights, whose output has the precision of its input.

    torch gives one scale to all of its input. A few positions have activations hundreds
    of times as great as the rest and would take it for themselves, so each position is
    first brought to a maximum of one.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-20).float()
        y = super().forward(x / scale)
        if self.bias_F is None:
            return (y * scale).to(x.dtype)
        return ((y - self.bias_F) * scale + self.bias_F).to(x.dtype)

    @classmethod
    def from_float(cls, mod: torch.nn.Linear, *args, **kwargs) -> "_Linear8":
        """Quantize a linear map."""
        linear = super().from_float(mod, *args, **kwargs)
        linear.bias_F = None if mod.bias is None else mod.bias.detach().float()
        return linear


def _quantize(lm: torch.nn.Module) -> None:
    """Put 8-bit weights into the linear maps of the base LM."""
    # the embeddings, which the head shares its weights with, stay as they are
    head = torch.nn.Sequential(lm.lm_head)
    inserted = inserted_layers(lm)
    layers = [x for place, x in enumerate(lm.model.layers) if place not in inserted]
    for module in (*layers, head):
        names = [
            name
            for name, part in module.named_modules()
            if isinstance(part, torch.nn.Linear)
            and not any(part_name in name for part_name in KEPT)
        ]
        quantize_linear(module, names)
    lm.lm_head = head[0]


def quantize_linear(module: torch.nn.Module, names: List[str]) -> None:
    """Put 8-bit weights, a scale for each output, into linear maps by name."""
    config = torch.ao.quantization.per_channel_dynamic_qconfig
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to move this elsewhere
        torch.ao.quantization.quantize_dynamic(
            module,
            {name: config for name in names},
            mapping={torch.nn.Linear: _Linear8},
            inplace=True,
        )
