"""Stage 7: checks that the untrained model is the base LM, and lists its parts."""

import copy
import logging
from argparse import Namespace
from pathlib import Path
from typing import List, NamedTuple, Sequence

import numpy as np
import torch
from espnet2.utils.get_default_kwargs import get_default_kwargs

from espnet_dus.evaluation.text.tables import markdown_table
from espnet_dus.io import write_text
from espnet_dus.model.base_lm import load_base_lm
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.layers import KINDS, SCOPES
from espnet_dus.model.stack import StackLayer, describe, draw
from espnet_dus.model.upscaling import upscale
from espnet_dus.task import DUSTask

# Values of model_conf that every kind, scope and placement allows.
FOR_EVERY_KIND = {
    "ctc_layer": "base:0",
    "ctc_compression": False,
    "text_retention_weight": 0.0,
}


class IdentityResult(NamedTuple):
    """How the logits of an untrained adapted model compare with the base LM's."""

    name: str  # the arm, with kind and scope
    num_text: int  # text tokens compared
    text_equal: bool  # their logits are equal, bit for bit
    num_speech: int  # positions of the speech input compared
    speech_equal: bool  # the same, against the base LM fed the same embeddings
    largest_difference: float  # of any two logits


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
        speech: A real utterance: samples (N,), features (F, M) or tokens (F, K).
        out_dir: Directory of the report.
        every_kind: Check every kind and scope besides those of the options.

    Raises:
        RuntimeError: The untrained model is not the base LM.
    """
    base, _, _ = load_base_lm(args.base_lm, **args.base_lm_conf)
    own = dict(args.adaptation_conf)
    if args.adaptation == "dus":
        own = {**get_default_kwargs(upscale), **own}
    confs = [(args.adaptation, own)]
    if every_kind:
        positions = own.get("positions", "interleaved")
        confs += [
            ("dus", {"kind": kind, "scope": scope, "positions": positions})
            for kind in KINDS
            for scope in SCOPES
            if (kind, scope) != (own.get("kind"), own.get("scope"))
        ]
    results: List[IdentityResult] = []
    wrong: List[str] = []
    stack: List[StackLayer] = []
    for arm, conf in confs:
        varied = Namespace(**vars(args))
        varied.adaptation, varied.adaptation_conf = arm, conf
        varied.normalize = None  # no statistics before stage 10
        if conf is not own:
            varied.model_conf = {**args.model_conf, **FOR_EVERY_KIND}
        model = DUSTask.build_model(varied).eval()
        if not results:
            stack = describe(model)
        name = arm if arm != "dus" else f"dus {conf.get('kind')} {conf.get('scope')}"
        result = check_identity(model, base, name, text, speech)
        logging.info(result)
        results.append(result)
        # a merge that starts at random changes speech from the start, on purpose
        may_differ = conf.get("merge_init") == "random"
        if not (result.text_equal and (result.speech_equal or may_differ)):
            wrong.append(name)
    picture = draw(stack, out_dir / "stack.png")
    write_text(out_dir / "report.md", report(args, results, stack, picture.name))
    print(identity_table(results))
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
    if base.dtype != model.lm.dtype:  # full fine-tuning trains float32 weights
        base = copy.deepcopy(base).to(model.lm.dtype)
    ids = model.tokenizer(text, return_tensors="pt").input_ids[:, :128]
    ours, theirs = model.lm(input_ids=ids).logits, base(input_ids=ids).logits

    batch = torch.as_tensor(speech)[None]
    if batch.is_floating_point():
        batch = batch.float()
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


def identity_table(results: Sequence[IdentityResult]) -> str:
    """Return the results as a Markdown table."""
    words = {True: "equal", False: "DIFFERENT"}
    return markdown_table(
        [
            {
                "model, untrained": r.name,
                "text tokens": r.num_text,
                "text logits": words[r.text_equal],
                "speech positions": r.num_speech,
                "speech logits": words[r.speech_equal],
                "largest difference": f"{r.largest_difference:g}",
            }
            for r in results
        ]
    )


def report(
    args: Namespace,
    results: Sequence[IdentityResult],
    stack: Sequence[StackLayer],
    picture: str,
) -> str:
    """Return the report as Markdown."""
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
        "",
        "## The stack, from the input up",
        "",
        f"![the stack]({picture})",
        "",
        markdown_table(
            [
                {"part": p.name, "trained": f"{p.trained:,}", "frozen": f"{p.frozen:,}"}
                for p in stack
            ]
        ),
    ]
    return "\n".join(lines) + "\n"
