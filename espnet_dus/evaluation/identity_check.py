"""Stage 7: is the untrained model the base LM? And what is it made of?"""

import logging
from argparse import Namespace
from pathlib import Path
from typing import List, NamedTuple, Sequence

import numpy as np
import torch

from espnet_dus.model.base_lm import load_base_lm
from espnet_dus.model.checkpoint import parameter_counts
from espnet_dus.io import atomic_path, write_text
from espnet_dus.model.layers import KINDS, SCOPES
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.task import BASE_LM_CONF, DUSTask
from espnet_dus.model.upscaling import inserted_layers


class IdentityResult(NamedTuple):
    """How the logits of an untrained adapted model compare with the base LM's.

    Attributes:
        name: The arm, with kind and scope.
        num_text: Text tokens compared.
        text_equal: Whether their logits are equal, bit for bit.
        num_speech: Positions of the speech input compared.
        speech_equal: Whether theirs are (the base LM is fed the same embeddings).
        largest_difference: Of all logits.
    """

    name: str
    num_text: int
    text_equal: bool
    num_speech: int
    speech_equal: bool
    largest_difference: float


class StackLayer(NamedTuple):
    """One part of the model, from the input up.

    Attributes:
        name: What it is.
        trained: Its trained parameters.
        frozen: Its frozen parameters.
        inserted: Whether it is an inserted layer.
    """

    name: str
    trained: int
    frozen: int
    inserted: bool = False


def run(
    args: Namespace,
    text: str,
    speech: np.ndarray,
    out_dir: Path,
    every_kind: bool,
) -> None:
    """Check the identity, write `report.md` and `stack.png`.

    Args:
        args: The training options, as `dus_train` takes them.
        text: Real text.
        speech: A real utterance (samples,) or (F, M).
        out_dir: Where the report goes.
        every_kind: Check every kind and scope beside what the options say.

    Raises:
        RuntimeError: The untrained model is not the base LM.
    """
    base, _, _ = load_base_lm(args.base_lm, **{**BASE_LM_CONF, **args.base_lm_conf})
    own = dict(args.adaptation_conf)
    if args.adaptation == "dus":
        own = {"kind": "e_branchformer", "scope": "speech", **own}  # upscale's defaults
    confs = [(args.adaptation, own)]
    if every_kind:
        positions = own.get("positions", "spread:6")
        confs += [
            ("dus", {"kind": kind, "scope": scope, "positions": positions})
            for kind in KINDS
            for scope in SCOPES
            if (kind, scope) != (own.get("kind"), own.get("scope"))
        ]
    results: List[IdentityResult] = []
    stack: List[StackLayer] = []
    for arm, conf in confs:
        varied = Namespace(**vars(args))
        varied.adaptation, varied.adaptation_conf = arm, conf
        # no statistics before stage 10; and a CTC layer need not exist in all variants
        varied.normalize = None
        if conf is not own:
            varied.model_conf = {**args.model_conf, "ctc_layer": "base:0"}
        model = DUSTask.build_model(varied).eval()
        if not results:
            stack = describe(model)
        name = arm if arm != "dus" else f"dus {conf.get('kind')} {conf.get('scope')}"
        results.append(check_identity(model, base, name, text, speech))
        logging.info(results[-1])
    picture = draw(stack, out_dir / "stack.png")
    write_text(out_dir / "report.md", report(args, results, stack, picture.name))
    print(identity_table(results))
    wrong = [r.name for r in results if not (r.text_equal and r.speech_equal)]
    if wrong:
        raise RuntimeError(
            f"untrained, these are not the base LM: {', '.join(wrong)}; see "
            f"{out_dir / 'report.md'}"
        )


@torch.no_grad()
def check_identity(
    model: ESPnetDUSModel,
    base: torch.nn.Module,
    name: str,
    text: str,
    speech: np.ndarray,
) -> IdentityResult:
    """Compare an untrained model with the base LM.

    Args:
        model: In eval mode.
        base: The base LM, loaded as the model's was.
        name: For the result.
        text: Real text; its first 128 tokens are used.
        speech: A real utterance.
    """
    ids = model.tokenizer(text, return_tensors="pt").input_ids[:, :128]
    ours, theirs = model.lm(input_ids=ids).logits, base(input_ids=ids).logits

    batch = torch.as_tensor(speech, dtype=torch.float32)[None]
    speech_BSD, lengths_B = model.embed_speech(batch, torch.tensor([len(speech)]))
    text_ids = ids[:, :32]
    text_lengths = torch.tensor([text_ids.size(1)])
    seq = model.join_text(speech_BSD, lengths_B, text_ids, text_lengths)
    length = int(seq.lengths_B)
    inputs = seq.inputs_BTD[:, :length]
    ours_s = model.lm(
        inputs_embeds=inputs, speech_mask=seq.speech_mask_BT[:, :length]
    ).logits
    theirs_s = base(inputs_embeds=inputs).logits
    return IdentityResult(
        name,
        ids.size(1),
        torch.equal(ours, theirs),
        length,
        torch.equal(ours_s, theirs_s),
        max(
            float((a - b).abs().max()) for a, b in ((ours, theirs), (ours_s, theirs_s))
        ),
    )


def describe(model: ESPnetDUSModel) -> List[StackLayer]:
    """List the parts of a model in the order in which speech meets them."""

    def part(name: str, module: torch.nn.Module, inserted: bool = False) -> StackLayer:
        counts = parameter_counts(module)
        return StackLayer(name, counts["trained"], counts["frozen"], inserted)

    inserted = inserted_layers(model.lm)
    stack = [part("speech embedder", model.speech_embedder)]
    stack.append(part("token embeddings", model.lm.get_input_embeddings()))
    num_base = 0
    for place, layer in enumerate(model.lm.model.layers):
        if place in inserted:
            kind = model.lm.config.depth_up_scaling["kind"]
            stack.append(part(f"inserted {kind}", layer, True))
        else:
            stack.append(part(f"base layer {num_base}", layer))
            num_base += 1
        if model.ctc is not None and place == model.ctc_layer:
            stack.append(part("CTC head", model.ctc))
    stack.append(part("norm", model.lm.model.norm))
    head = model.lm.lm_head
    if head.weight is model.lm.get_input_embeddings().weight:
        stack.append(StackLayer("LM head (the token embeddings)", 0, 0))
    else:
        stack.append(part("LM head", head))
    return stack


def identity_table(results: Sequence[IdentityResult]) -> str:
    """Give the results as a Markdown table."""
    lines = [
        "|model, untrained|text tokens|text logits|speech positions|speech logits|"
        "largest difference|",
        "|---|---|---|---|---|---|",
    ]
    words = {True: "equal", False: "DIFFERENT"}
    for r in results:
        lines.append(
            f"|{r.name}|{r.num_text}|{words[r.text_equal]}|{r.num_speech}|"
            f"{words[r.speech_equal]}|{r.largest_difference:g}|"
        )
    return "\n".join(lines) + "\n"


def report(
    args: Namespace,
    results: Sequence[IdentityResult],
    stack: Sequence[StackLayer],
    picture: str,
) -> str:
    """Give the report as Markdown."""
    trained = sum(layer.trained for layer in stack)
    frozen = sum(layer.frozen for layer in stack)
    lines = [
        "# Up-scaling report",
        "",
        f"Base LM: `{args.base_lm}`. Arm: {args.adaptation} {args.adaptation_conf}.",
        "",
        f"Trained: {trained:,} parameters, {trained / (trained + frozen):.1%} of "
        f"{trained + frozen:,}. Frozen: {frozen:,}.",
        "",
        "## Identity before training",
        "",
        "Logits against those of the untouched base LM, bit for bit; on speech, "
        "against the base LM fed the same embeddings.",
        "",
        identity_table(results),
        "## The stack, from the input up",
        "",
        f"![the stack]({picture})",
        "",
        "|part|trained|frozen|",
        "|---|---|---|",
    ]
    lines += [f"|{part.name}|{part.trained:,}|{part.frozen:,}|" for part in stack]
    return "\n".join(lines) + "\n"


def draw(stack: Sequence[StackLayer], path: Path) -> Path:
    """Draw the stack, input at the bottom; what is trained in colour."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 0.28 * len(stack) + 1))
    for y, part in enumerate(stack):
        color = "#d1495b" if part.inserted else "#edae49" if part.trained else "#c9d6df"
        axes.barh(y, 1, height=0.85, color=color, edgecolor="white")
        count = part.trained or part.frozen
        label = f"{part.name}   {count / 1e6:.2f} M" if count else part.name
        axes.text(0.5, y, label, ha="center", va="center", fontsize=8)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=color)
        for color in ("#d1495b", "#edae49", "#c9d6df")
    ]
    axes.legend(
        handles,
        ["inserted, trained", "trained", "base LM, frozen"],
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    axes.set_axis_off()
    axes.set_ylim(-0.5, len(stack) - 0.5)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return path
