#!/usr/bin/env python3
"""Count what a training step of each arm keeps for its backward pass.

One base layer and one inserted layer of real width run on the CPU, in bfloat16, on two
lengths; counted is what autograd keeps of each position (kB). What it keeps once, such
as autocast's copies of the weights, is left out. A GPU's kernels may keep other things:
it is an estimate.

    tools/benchmarks/activation_memory.py
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from espnet_dus.model.adaptation import adapt
from espnet_dus.model.upscaling import inserted_layers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from scaling import BASE_LMS, load_arms  # noqa: E402


def kept_bytes(lm, length):
    """Return the bytes that each layer keeps of a sequence that is all speech."""
    layers = list(lm.model.layers)
    kept, seen, current = [0] * len(layers), set(), [None]
    parameters = {p.untyped_storage().data_ptr() for p in lm.parameters()}

    def count(tensor):
        place = tensor.untyped_storage().data_ptr()
        if current[0] is not None and place not in parameters | seen:
            seen.add(place)
            kept[current[0]] += tensor.untyped_storage().nbytes()
        return tensor

    def enter(number):
        return lambda *_: current.__setitem__(0, number)

    hooks = []
    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(enter(number)))
        hooks.append(layer.register_forward_hook(enter(None)))
    inputs = torch.randn(1, length, lm.config.hidden_size, dtype=torch.bfloat16)
    inputs.requires_grad_()
    mask = torch.ones(1, length, dtype=torch.bool)
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        out = lm.model(inputs_embeds=inputs, speech_mask=mask, use_cache=False)
    del out  # what is kept must live until now, or its place would be used again
    for hook in hooks:
        hook.remove()
    return kept


def small(arm):
    """Build two base layers of an arm, with one inserted between."""
    config = LlamaConfig(
        vocab_size=64,
        tie_word_embeddings=True,
        **{**BASE_LMS[arm.size], "num_hidden_layers": 2},
    )
    torch.manual_seed(0)
    lm = LlamaForCausalLM(config).to(torch.bfloat16)
    conf = getattr(arm.lm.config, "depth_up_scaling", None)
    if conf is not None:
        kind = {name: conf[name] for name in ("kind", "scope")}
        return adapt(lm, "dus", positions=[0], **kind, **conf["layer_conf"])
    if arm.name == "lora":
        ranks = [m.r["default"] for m in arm.lm.modules() if hasattr(m, "lora_A")]
        return adapt(lm, "lora", rank=ranks[0])
    return adapt(lm, arm.name)


def main(cmd=None):
    """Count and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--config_dir",
        type=Path,
        default=ROOT / "egs2/TEMPLATE/dus1/conf/tuning/paper",
        help="holds a train_dus_<size>_<arm>.yaml for each arm",
    )
    add("--lengths", type=int, nargs=2, default=[64, 160], help="positions")
    add("--tokens", type=int, default=8192, help="positions in a batch of the table")
    options = parser.parse_args(cmd)
    print("|base LM|arm|base layer|inserted layer|all layers, GB|checkpointing, GB|")
    print("|---|---|---:|---:|---:|---:|")
    for arm in load_arms(options.config_dir, num_ctc_units=2):
        lm = small(arm)
        short, long = options.lengths
        kept = [
            (more - less) / (long - short) / 1e3
            for less, more in zip(kept_bytes(lm, short), kept_bytes(lm, long))
        ]
        places = inserted_layers(lm)
        inserted = max((kept[i] for i in places), default=0.0)
        base = kept[-1]  # the first keeps what all share, too: masks, rotations
        in_all = len(inserted_layers(arm.lm))
        num_base = len(arm.lm.model.layers) - in_all
        whole = (num_base * base + in_all * inserted) * options.tokens / 1e6
        # the input of each layer in bfloat16, and one layer whole
        inputs = (num_base + in_all) * lm.config.hidden_size * 2 / 1e3
        less = (inputs + max(base, inserted)) * options.tokens / 1e6
        row = [arm.size, arm.name, f"{base:.0f}", f"{inserted:.0f}"]
        print(f"|{'|'.join(row)}|{whole:.2f}|{less:.2f}|")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
