#!/usr/bin/env python3
"""Compare padded batches with packed rows: padding, step time and losses.

An arm of the paper, with a base LM of its width but few layers and random weights,
trains on random speech tokens of utterances of random lengths, in batches of similar
lengths (ESPnet's `length`) and of lengths as they come. Padded and packed steps on the
same batches take turns in one process, so that what else the machine does meets both;
the ratio is the median over the batches. On a CPU its time is counted, not the clock's.

    tools/benchmarks/packing.py --tokens 2048 --steps 4
"""

import argparse
import operator
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from espnet2.samplers.build_batch_sampler import build_batch_sampler

from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.task import DUSTask
from espnet_dus.training.throughput import WorkCounter

sys.path.insert(0, str(Path(__file__).parent))
from gpu_check import (  # noqa: E402
    BASE_LMS,
    CONFIG_DIR,
    FRAMES_PER_SECOND,
    OPUSLM,
    build,
    train_step,
    write_base_lm,
)


def draw_lengths(options):
    """Draw the frames of utterances of several batches."""
    generator = random.Random(0)
    low, high = (round(s * FRAMES_PER_SECOND) for s in options.seconds)
    number = 20 * (options.steps + 1) * options.tokens // (low + high)
    return [generator.randint(low, high) for _ in range(number)]


def batches_of_lengths(lengths, options):
    """Return batches, as lists of frames, by how they are formed."""
    with tempfile.NamedTemporaryFile("w") as shapes:
        shapes.write("".join(f"{i} {n}\n" for i, n in enumerate(lengths)))
        shapes.flush()
        sampler = build_batch_sampler("length", 1, options.tokens, [shapes.name])
    similar = [[lengths[int(i)] for i in batch] for batch in sampler]
    any_order, total = [[]], 0
    for length in lengths:
        total += length
        if total > options.tokens:
            any_order.append([])
            total = length
        any_order[-1].append(length)
    choose = random.Random(1)
    return {
        "similar lengths": choose.sample(similar[:-1], options.steps + 1),
        "any lengths": choose.sample(any_order[:-1], options.steps + 1),
    }


def make_batch(frames, vocab_sizes, device):
    """Make a batch of random tokens and transcripts of three tokens a second."""
    speech_B = torch.tensor(frames)
    text_B = (3 * speech_B) // FRAMES_PER_SECOND + 1
    sizes_K = torch.tensor(vocab_sizes)
    tokens_BSK = torch.rand(len(frames), max(frames), len(sizes_K)) * sizes_K
    batch = dict(
        speech=tokens_BSK.long(),
        speech_lengths=speech_B,
        text=torch.randint(1, 250, (len(frames), int(text_B.max()))),
        text_lengths=text_B,
    )
    return {name: values.to(device) for name, values in batch.items()}


def compare(models, batches, device):
    """Run the steps; return rows of the table, by side."""
    vocab_sizes = next(iter(models.values()))[0].speech_embedder.vocab_sizes
    clock = time.process_time if device == "cpu" else time.perf_counter
    sides = {
        name: dict(seconds=[], losses=[], counter=WorkCounter(model))
        for name, (model, _) in models.items()
    }
    for n, frames in enumerate(batches):
        batch = make_batch(frames, vocab_sizes, device)
        for name, (model, optimizer) in models.items():
            if n == 1:  # the first is not measured
                sides[name]["counter"].take()
            begin = clock()
            loss = train_step(model, model, optimizer, batch)
            if device == "cuda":
                torch.cuda.synchronize()
            sides[name]["seconds"].append(clock() - begin)
            sides[name]["losses"].append(loss)
    for side in sides.values():
        side["counter"].remove()
    return sides


def main(cmd=None):
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--size", default="360m", choices=list(BASE_LMS), help="width of the base LM")
    add("--layers", type=int, default=4, help="base layers")
    add("--arms", nargs="+", default=["interleaved", "e_branchformer_interleaved"])
    add("--tokens", type=int, default=8192, help="frames in a batch, batch_bins")
    add("--seconds", type=float, nargs=2, default=[2.0, 20.0], help="of an utterance")
    add("--steps", type=int, default=5, help="steps timed, after one that is not")
    add("--dtype", default="float32", help="of the base LM")
    options = parser.parse_args(cmd)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = batches_of_lengths(draw_lengths(options), options)
    print("|arm|batches|side|padding|step, s|ratio|largest difference of losses|")
    print("|---|---|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        info = TokenizerInfo("r", {"encoder": "none"}, FRAMES_PER_SECOND, 16000, OPUSLM)
        info.write(directory / "tokenizer")
        sizes = {**BASE_LMS[options.size], "num_hidden_layers": options.layers}
        base_lm = write_base_lm(directory / "base_lm", sizes)
        for arm in options.arms:
            config = CONFIG_DIR / f"train_dus_{options.size}_{arm}.yaml"
            models = {}
            for packing in ("false", "true"):
                torch.manual_seed(0)
                model, args = build(
                    base_lm,
                    directory / "tokenizer",
                    config,
                    *("--model_conf", f"packing={packing}"),
                    *("--base_lm_conf", f"dtype={options.dtype}"),
                    # masks are drawn at random
                    *("--speech_embedder_conf", "num_time_mask=0"),
                )
                model = model.to(device).train()
                (optimizer,) = DUSTask.build_optimizers(args, model)
                models["packed" if packing == "true" else "padded"] = model, optimizer
            for kind, frames in batches.items():
                sides = compare(models, frames, device)
                losses = zip(*(side["losses"] for side in sides.values()))
                difference = max(abs(ours - theirs) for ours, theirs in losses)
                padded = sides["padded"]["seconds"][1:]
                for name, side in sides.items():
                    seconds = side["seconds"][1:]
                    ratio = statistics.median(map(operator.truediv, padded, seconds))
                    work = side["counter"].take()
                    padding = 1 - work.positions / work.padded
                    print(
                        f"|{arm}|{kind}|{name}|{padding:.1%}"
                        f"|{statistics.median(seconds):.2f}|{ratio:.2f}"
                        f"|{difference:.1e}|",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
