#!/usr/bin/env python3
"""Compare one added layer of each kind: step time and memory, on speech and on text.

In one process, on one device, layers of a base LM's real width run forward and backward
in turn, so that what else the machine does meets all alike. Ratios are to the copy of a
base layer, which costs what a base layer costs. Memory is what autograd keeps for the
backward pass. ESPnet's own layer (scope speech) has the hybrid's widths; it does not
run on text.

    tools/benchmarks/added_layers.py
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from espnet_dus.model.layers.speech_only import find_speech
from espnet_dus.model.upscaling import inserted_layers, upscale

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from scaling import BASE_LMS  # noqa: E402

LAYERS = {
    "Transformer copy": ("transformer", "all"),
    "hybrid E-Branchformer": ("e_branchformer", "all"),
    "ESPnet's E-Branchformer": ("e_branchformer", "speech"),
}


def build(kind, scope, size, device):
    """Return an added layer and the rotary embedding of its LM."""
    sizes = {**BASE_LMS[size], "num_hidden_layers": 1}
    conf = {}
    if (kind, scope) == ("e_branchformer", "speech"):
        conf = dict(linear_units=sizes["intermediate_size"], dropout_rate=0.0)
    torch.manual_seed(0)
    with torch.device(device):
        lm = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    lm = upscale(lm, kind, scope, [0], **conf)
    (layer,) = inserted_layers(lm).values()
    return layer.train(), lm.model.rotary_emb


def step(layer, rotary, x_BTD, speech):
    """Run forward and backward."""
    positions = torch.arange(x_BTD.size(1), device=x_BTD.device)[None]
    mask = torch.full(x_BTD.shape[:2], speech, device=x_BTD.device)
    y_BTD = layer(
        x_BTD,
        position_ids=positions,
        position_embeddings=rotary(x_BTD, positions),
        speech=find_speech(mask, training=True),
    )
    y_BTD.backward(torch.ones_like(y_BTD))
    if x_BTD.is_cuda:
        torch.cuda.synchronize()


def kept_bytes(layer, rotary, x_BTD, speech):
    """Count what autograd keeps of a forward pass, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # keeps it alive
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        step(layer, rotary, x_BTD, speech)
    return sum(size for size, _ in kept.values())


def main(cmd=None):
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", choices=list(BASE_LMS), default="360m", help="width of the base LM")
    add("--batch", type=int, default=4, help="sequences")
    add("--length", type=int, default=256, help="positions of each")
    add("--steps", type=int, default=10, help="measured after two others")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(cmd)

    hidden = BASE_LMS[args.size]["hidden_size"]
    x_BTD = torch.randn(args.batch, args.length, hidden, device=args.device)
    x_BTD.requires_grad_()
    layers = {n: build(*kind, args.size, args.device) for n, kind in LAYERS.items()}
    parameters = {
        name: sum(p.numel() for p in layer.parameters())
        for name, (layer, _) in layers.items()
    }
    on_gpu = x_BTD.is_cuda
    clock = time.perf_counter if on_gpu else time.process_time  # others use the CPU too
    unit = "ms" if on_gpu else "CPU ms"
    print(f"|positions|layer|parameters, M|step, {unit}|ratio|kept, MB|ratio|")
    print("|---|---|---:|---:|---:|---:|---:|")
    for positions in ("speech", "text"):
        speech = positions == "speech"
        runs = dict(list(layers.items())[: 3 if speech else 2])
        seconds = {name: [] for name in runs}
        for _ in range(args.steps + 2):
            for name, (layer, rotary) in runs.items():
                start = clock()
                step(layer, rotary, x_BTD, speech)
                seconds[name].append(clock() - start)
        times = {name: statistics.median(s[2:]) for name, s in seconds.items()}
        kept = {name: kept_bytes(*run, x_BTD, speech) for name, run in runs.items()}
        first = next(iter(runs))
        for name in runs:
            print(
                f"|{positions}|{name}|{parameters[name] / 1e6:.2f}"
                f"|{times[name] * 1e3:.0f}|{times[name] / times[first]:.2f}"
                f"|{kept[name] / 1e6:.0f}|{kept[name] / kept[first]:.2f}|"
            )


if __name__ == "__main__":
    main()
