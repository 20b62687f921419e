"""The precision a trained model is run in."""

import warnings

import torch

from espnet_dus.base_lm import resolve_dtype
from espnet_dus.model import ESPnetDUSModel
from espnet_dus.upscaling import inserted_layers

DTYPES = ("float32", "bfloat16", "int8")


def set_precision(model: ESPnetDUSModel, dtype: str) -> None:
    """Change the precision of the base LM; what was inserted stays float32.

    Args:
        model: Loaded. Changed in place.
        dtype: `float32`, `bfloat16`, or `int8`: the base LM's linear maps have weights
            and inputs of 8 bits (torch's dynamic quantization; on a CPU), and what is
            between them is bfloat16 where the hardware computes in it, else float32.

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
    """A linear map with 8-bit weights whose output has the precision of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).to(x.dtype)


def _quantize(lm: torch.nn.Module) -> None:
    """Put 8-bit weights into the linear maps of the base LM, but for LoRA's own."""
    config = torch.ao.quantization.default_dynamic_qconfig
    # the embeddings, which the head shares its weights with, stay as they are
    head = torch.nn.Sequential(lm.lm_head)
    inserted = inserted_layers(lm)
    layers = [x for place, x in enumerate(lm.model.layers) if place not in inserted]
    for module in (*layers, head):
        linear = {
            name: config
            for name, part in module.named_modules()
            if isinstance(part, torch.nn.Linear) and "lora_" not in name
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch means to move this elsewhere
            torch.ao.quantization.quantize_dynamic(
                module,
                linear,
                mapping={torch.nn.Linear: _Linear8},
                inplace=True,
            )
    lm.lm_head = head[0]
