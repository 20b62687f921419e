"""The comparison of arms as a Markdown page: one table, and what its figures mean."""

from typing import Any, Dict, List, Optional, Sequence

from espnet_dus.evaluation.degradation import Degradation
from espnet_dus.evaluation.report import environments
from espnet_dus.evaluation.results import ArmResults, Delta, ErrorRate
from espnet_dus.evaluation.text.tables import EXACT, markdown_table, plus_minus

UNKNOWN, NOT_RUN = "-", "not run"
NAME, CURVES = "comparison", "curves.png"


def markdown(
    arms: Sequence[ArmResults],
    losses: Dict[str, Optional[Degradation]],
    avoided: Dict[str, float],
    entropies: Dict[str, Dict[str, Optional[Dict[str, Any]]]],
) -> str:
    """Return the comparison as a page.

    The columns of a test set are named after it if there are several. The table has a
    row for the base LM on text and one for each arm, with its added layers kept. If
    they were verified to leave the base LM when dropped, another row says so.
    """
    texts = list(dict.fromkeys(name for arm in arms for name in arm.perplexity))
    tasks = list(dict.fromkeys(name for arm in arms for name in arm.tasks))

    base_row = {"arm": "base LM", "trained": "0"}
    rows = []
    for arm in arms:
        row = {
            "arm": arm.name,
            "trained": f"{arm.trained / 1e6:.2f} M ({arm.trained / arm.total:.1%})",
            "as the paper counts": _figure(arm.trained_as_paper, "{:.2f} M", 1e-6),
            "lr": _figure(arm.learning_rate, "{:.1e}"),
            **_columns("WER", {name: _rate(s.wer) for name, s in arm.sets.items()}),
            **_columns("CER", {name: _rate(s.cer) for name, s in arm.sets.items()}),
            **_columns(
                "nats per token",
                {name: _entropy(entropies[name][arm.name]) for name in arm.sets},
            ),
        }
        for column, part, table in (
            *((f"perplexity {name}", name, "perplexity") for name in texts),
            *((name, name, "tasks") for name in tasks),
        ):
            delta = getattr(arm, table).get(part)
            row[column] = _delta(arm, delta)
            if delta is not None and delta.base is not None:
                scale = 100 if delta.is_accuracy else 1
                base_row[column] = f"{scale * delta.base:.2f}"
        row["mean delta"] = _delta(arm, arm.mean_delta, scale=100)
        for name in texts:
            row[f"KL {name}"] = _known(arm, arm.kl.get(name), "{:.4f}")
        share = avoided.get(arm.name)
        row["degradation avoided"] = _known(arm, share, "{:.0%}")
        row["epochs"] = _figure(arm.epochs, "{}")
        row["s/step"] = _figure(arm.seconds_per_step, "{:.2f}")
        row["training"] = _figure(arm.wall_seconds, "{:.2f} h", 1 / 3600)
        row["peak memory"] = _figure(arm.peak_memory_bytes, "{:.2f} GB", 1e-9)
        speeds = {name: _figure(s.rtfx, "{:.1f}") for name, s in arm.sets.items()}
        row |= _columns("RTFx", speeds)
        rows.append(row)
        if arm.dropped_tokens and not arm.identical_tokens:
            on_text = [*(f"perplexity {name}" for name in texts), *tasks, "mean delta"]
            dropped = dict.fromkeys(on_text, EXACT)
            dropped.update((f"KL {name}", "0.0000") for name in texts)
            rows.append({"arm": f"{arm.name}, dropped", **dropped})

    lines = [f"# Comparison of {len(arms)} arms", "", *environments()]
    lines.append(f"- Base LM: {describe(arms[0])}")
    for test_set in arms[0].sets:
        lines.append(f"- Test set: {test_set}, decoded in")
        for arm in arms:
            where = f"{arm.exp_dir}/{arm.sets[test_set].decoding}"
            lines.append(f"  - {arm.name}: `{where}`")
    if len({arm.retention for arm in arms}) > 1:
        weights = ", ".join(f"{arm.name}: {arm.retention:g}" for arm in arms)
        lines.append(f"- **Not equal**: weight of text retention ({weights})")
    if texts or tasks:
        # all columns, in the order of the arms' rows
        rows.insert(0, {column: base_row.get(column, "") for column in rows[0]})
    return (
        "\n".join([*lines, "", markdown_table(rows), "", *_remarks(arms, losses)])
        + "\n"
    )


def describe(arm: ArmResults) -> str:
    """Return the name and identity of an arm's base LM."""
    return f"`{arm.base_lm['name']}` sha256 `{arm.base_lm['sha256'][:12]}`"


def _columns(name: str, by_set: Dict[str, str]) -> Dict[str, str]:
    return {
        name if len(by_set) == 1 else f"{name} {test_set}": cell
        for test_set, cell in by_set.items()
    }


def _figure(value: Optional[float], form: str, scale: float = 1) -> str:
    return UNKNOWN if value is None else form.format(scale * value)


def _known(arm: ArmResults, value: Optional[float], form: str) -> str:
    """Format a figure of the text evaluation."""
    return _figure(value, form) if arm.text_setting else NOT_RUN


def _rate(rate: Optional[ErrorRate]) -> str:
    if rate is None:
        return UNKNOWN
    if rate.low is None:
        return f"{rate.err:.1f}"
    return f"{rate.err:.1f} ({rate.low:.1f} to {rate.high:.1f})"


def _entropy(measured: Optional[Dict[str, Any]]) -> str:
    if measured is None:
        return UNKNOWN
    if "delta" not in measured:
        return f"{measured['score']:.3f}"
    error = measured["standard_error"]
    pair = f"{measured['delta']:+.3f}" + ("" if error is None else f" +- {error:.3f}")
    return f"{measured['score']:.3f} ({pair})"


def _delta(
    arm: ArmResults, delta: Optional[Delta], scale: Optional[float] = None
) -> str:
    if not arm.text_setting:
        return NOT_RUN
    if delta is None:
        return UNKNOWN
    if arm.identical_tokens:
        return EXACT
    scale = scale or (100 if delta.is_accuracy else 1)
    return f"{scale * delta.delta:+.2f}{plus_minus(delta.standard_error, scale)}"


def _remarks(
    arms: Sequence[ArmResults], losses: Dict[str, Optional[Degradation]]
) -> List[str]:
    lines = [
        "WER and CER in percent with 95 % intervals (bootstrap over utterances). Text: "
        "the base LM's score, and below it adapted minus base, added layers kept, with "
        "the paired standard error; accuracies in points, perplexity and KL(base || "
        "adapted) in nats per token. s/step: mean of all training steps. training: "
        "wall time of all epochs. nats per token: cross-entropy of the test set's "
        "transcripts and, in brackets, the difference to the reference arm with its "
        "standard error, paired over utterances. RTFx: seconds of audio per second of "
        "a decoding job; speech tokens and features of stage 3 are made before it.",
        "",
    ]
    kept = {a.name: a.identical_tokens for a in arms if a.identical_tokens}
    dropped = {
        a.name: a.dropped_tokens
        for a in arms
        if a.dropped_tokens and a.name not in kept
    }
    for state, tokens in (("kept", kept), ("dropped", dropped)):
        if tokens:
            construction = ", by construction" if state == "kept" else ""
            verified = ", ".join(f"{name}: {number}" for name, number in tokens.items())
            lines += [
                f"{EXACT}, added layers {state}: text-only logits equal the base LM's "
                f"bit for bit{construction}; number of tokens verified: {verified}.",
                "",
            ]
    memories = sorted({arm.peak_memory_of for arm in arms if arm.peak_memory_of})
    if memories:
        lines += [f"Peak memory: of the {' or '.join(memories)}, in training.", ""]
    units = {loss.unit for loss in losses.values() if loss}
    full = next((arm for arm in arms if arm.adaptation == "full"), None)
    if full is not None and losses[full.name]:
        loss = losses[full.name]
        what = f"{loss.delta:+.2f} {loss.unit}"
        if not loss.lost > 0:
            lines += [f"Full fine-tuning lost nothing on text ({what}).", ""]
        elif loss.standard_error and abs(loss.delta) < 1.96 * loss.standard_error:
            lines += [
                f"Full fine-tuning's degradation ({what}) is within its 95 % interval "
                "of 0: the avoided shares mean little.",
                "",
            ]
    if any(arm.curves for arm in arms):
        lines += [f"![Loss of each epoch, by arm]({CURVES})", ""]
    if units:
        lines += [f"![WER against text degradation, {units.pop()}]({NAME}.png)"]
    else:
        lines += ["No picture: no arm was evaluated on text."]
    return lines
