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
        dtype: `float32`, `bfloat16`, or `int8`: float32 with the weights of the base
            LM's linear maps in 8 bits (torch's dynamic quantization; on a CPU).

    Raises:
        ValueError: Another dtype, or `int8` on a GPU.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    if dtype == "int8" and model.lm.device.type != "cpu":
        raise ValueError("dtype: int8 is for CPUs; on a GPU take bfloat16")
    model.compute_dtype = resolve_dtype("float32" if dtype == "int8" else dtype)
    inserted = inserted_layers(model.lm).values()
    kept = {id(p) for layer in inserted for p in layer.parameters()}
    for parameter in model.lm.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(model.compute_dtype)
    if dtype == "int8":
        for place, layer in enumerate(model.lm.model.layers):
            if place not in inserted_layers(model.lm):
                _quantize(layer)
        # the embeddings, which it shares its weights with, stay as they are
        head = torch.nn.Sequential(model.lm.lm_head)
        _quantize(head)
        model.lm.lm_head = head[0]


def _quantize(module: torch.nn.Module) -> None:
    """Put 8-bit weights into the linear maps of a module, but for LoRA's own."""
    config = torch.ao.quantization.default_dynamic_qconfig
    linear = {
        name: config
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear) and "lora_" not in name
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to move this elsewhere
        torch.ao.quantization.quantize_dynamic(
            module, linear, torch.qint8, inplace=True
        )
