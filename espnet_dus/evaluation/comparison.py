"""Arms side by side: one table, WER against text degradation, and training curves."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Union

from espnet_dus.evaluation.report import environments
from espnet_dus.evaluation.results import ArmResults, Delta, ErrorRate, read_arm
from espnet_dus.evaluation.text.metric import Metric, mean_of_independent, paired_delta
from espnet_dus.evaluation.text.tables import EXACT, markdown_table, plus_minus
from espnet_dus.io import drawing, write_text

UNKNOWN, NOT_RUN = "-", "not run"
NAME, CURVES = "comparison", "curves.png"


class Degradation(NamedTuple):
    """What an arm does to text, in one number and its unit: adapted minus base LM."""

    unit: str  # `points` of accuracy (< 0: a loss) or `% perplexity` (> 0: a loss)
    delta: float
    standard_error: Optional[float]  # where it is known


def compare(
    exp_dirs: Sequence[Union[str, Path]],
    out_dir: Union[str, Path],
    test_set: str = "test",
    inference_tag: Optional[str] = None,
    reference: Optional[str] = None,
) -> str:
    """Write `comparison.{md,json,png}` and `curves.png` of several arms.

    Args:
        exp_dirs: Experiment directories of the arms.
        out_dir: Directory of the files. Without text results there is no picture.
        test_set: The set whose WER is compared.
        inference_tag: The decoding that is compared; None if each arm has only one.
        reference: The arm that the others' cross-entropy is compared with; None: the
            first.

    Returns:
        The Markdown.

    Raises:
        ValueError: Results are missing (see `read_arm`), or cannot be compared: they
            are of several base LMs, test sets, text evaluations or utterances, or of
            two arms of one name; or no arm is called `reference`.
    """
    arms = [read_arm(exp_dir, test_set, inference_tag) for exp_dir in exp_dirs]
    _check_comparable(arms)
    by_name = {arm.name: arm for arm in arms}
    if reference is not None and reference not in by_name:
        raise ValueError(f"reference: {reference!r} is none of {', '.join(by_name)}")
    entropies = _cross_entropies(arms, by_name[reference or arms[0].name])
    losses = _degradations(arms)
    avoided = _degradation_avoided(arms, losses)

    out_dir = Path(out_dir)
    content = {
        "test_set": test_set,
        "base_lm": arms[0].base_lm,
        "arms": [
            {
                **asdict(arm),
                "share": arm.trained / arm.total,
                "degradation": losses[arm.name] and losses[arm.name]._asdict(),
                "degradation_avoided": avoided.get(arm.name),
                "cross_entropy": entropies[arm.name],
            }
            for arm in arms
        ],
    }
    write_text(out_dir / f"{NAME}.json", json.dumps(content, indent=2) + "\n")
    picture = out_dir / f"{NAME}.png"
    picture.unlink(missing_ok=True)
    if any(losses.values()):
        _draw(arms, losses, test_set, picture)
    _draw_curves(arms, out_dir / CURVES)
    text = _markdown(arms, test_set, losses, avoided, entropies)
    write_text(out_dir / f"{NAME}.md", text)
    return text


def _check_comparable(arms: Sequence[ArmResults]) -> None:
    """Check that the arms' figures belong in one table."""
    first = arms[0]
    by_name: Dict[str, ArmResults] = {}
    for arm in arms:
        if (other := by_name.setdefault(arm.name, arm)) is not arm:
            raise ValueError(
                f"{other.exp_dir} and {arm.exp_dir}: two arms named {arm.name}"
            )
        if arm.base_lm["sha256"] != first.base_lm["sha256"]:
            raise ValueError(
                f"{first.exp_dir} and {arm.exp_dir} have different base LMs, "
                f"{_describe(first)} and {_describe(arm)}: compare each with its own"
            )
        utterances, words = first.wer.utterances, first.wer.tokens
        if (utterances, words) != (arm.wer.utterances, arm.wer.tokens):
            raise ValueError(
                f"{first.exp_dir} and {arm.exp_dir} were scored on different sets, "
                f"of {utterances} utterances and {words} words, and of "
                f"{arm.wer.utterances} and {arm.wer.tokens}: decode again"
            )
    with_text = [arm for arm in arms if arm.text_setting]
    for arm in with_text[1:]:
        if arm.text_setting != with_text[0].text_setting:
            raise ValueError(
                f"{with_text[0].exp_dir} and {arm.exp_dir}: text evaluations differ, "
                f"{with_text[0].text_setting} and {arm.text_setting}; evaluate with "
                "the same options (stage 13)"
            )


def _degradations(arms: Sequence[ArmResults]) -> Dict[str, Optional[Degradation]]:
    """Return the text degradation of each arm by name; None where it was not run.

    It is the mean delta of the tasks' accuracies with the added layers kept or, without
    such tasks, the mean change of the texts' perplexities.
    """
    evaluated = [arm for arm in arms if arm.text_setting]
    result: Dict[str, Optional[Degradation]] = {arm.name: None for arm in arms}
    in_points = all(arm.mean_delta for arm in evaluated)
    for arm in evaluated:
        if in_points:
            unit = "points"
            delta, error = arm.mean_delta.delta, arm.mean_delta.standard_error
        elif arm.perplexity:
            unit = "% perplexity"
            changes = [delta.relative() for delta in arm.perplexity.values()]
            delta, error = mean_of_independent(*zip(*changes))
        else:
            continue
        error = None if error is None else 100 * error
        result[arm.name] = Degradation(unit, 100 * delta, error)
    return result


def _degradation_avoided(
    arms: Sequence[ArmResults], losses: Dict[str, Optional[Degradation]]
) -> Dict[str, float]:
    """Return 1 - (degradation of an arm) / (degradation of arm `full`), by name.

    It is empty if no arm is `full`, or if `full` lost nothing.
    """
    full = next((losses[arm.name] for arm in arms if arm.adaptation == "full"), None)
    if full is None or not _lost(full) > 0:
        return {}
    return {
        name: 1 - _lost(loss) / _lost(full)
        for name, loss in losses.items()
        if loss is not None
    }


def _cross_entropies(
    arms: Sequence[ArmResults], reference: ArmResults
) -> Dict[str, Optional[Dict[str, Any]]]:
    """Compare the cross-entropy of the test set's transcripts with one arm's.

    Returns:
        By name, in nats per token: `score`; `reference`, `delta` and `standard_error`,
        which is paired over the utterances. None where it was not measured.
    """
    result: Dict[str, Optional[Dict[str, Any]]] = {}
    known = reference.cross_entropy
    for arm in arms:
        measured = arm.cross_entropy
        result[arm.name] = measured and {"score": measured["score"]}
        if measured and known and arm is not reference:
            if measured["utterances"] != known["utterances"]:
                raise ValueError(
                    f"{reference.exp_dir} and {arm.exp_dir}: the cross-entropy is of "
                    "different utterances; score again (stage 13)"
                )
            pair = paired_delta(Metric.from_json(known), Metric.from_json(measured))
            result[arm.name].update(
                reference=reference.name,
                delta=pair["delta"],
                standard_error=pair["standard_error"],
            )
    return result


def _markdown(
    arms: Sequence[ArmResults],
    test_set: str,
    losses: Dict[str, Optional[Degradation]],
    avoided: Dict[str, float],
    entropies: Dict[str, Optional[Dict[str, Any]]],
) -> str:
    """Return the comparison as a page.

    The table has a row for the base LM on text and one for each arm, with its added
    layers kept. If they were verified to leave the base LM when dropped, another row
    says so.
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
            "WER": _rate(arm.wer),
            "CER": _rate(arm.cer),
            "nats per token": _entropy(entropies[arm.name]),
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
        row["RTFx"] = _figure(arm.rtfx, "{:.1f}")
        rows.append(row)
        if arm.dropped_tokens and not arm.identical_tokens:
            on_text = [*(f"perplexity {name}" for name in texts), *tasks, "mean delta"]
            dropped = dict.fromkeys(on_text, EXACT)
            dropped.update((f"KL {name}", "0.0000") for name in texts)
            rows.append({"arm": f"{arm.name}, dropped", **dropped})

    lines = [f"# Comparison of {len(arms)} arms", "", *environments()]
    lines += [f"- Base LM: {_describe(arms[0])}", f"- Test set: {test_set}, decoded in"]
    lines += [f"  - {arm.name}: `{arm.exp_dir}/{arm.decoding}`" for arm in arms]
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


def _draw(
    arms: Sequence[ArmResults],
    losses: Dict[str, Optional[Degradation]],
    test_set: str,
    path: Union[str, Path],
) -> None:
    """Draw a point for each arm that was evaluated on text; upper left is best.

    Bars are 95 % intervals, where these are known.
    """
    with drawing(path, 7, 5) as axes:
        axes.axhline(0, color="#9aa5b1", linewidth=1, linestyle="--", zorder=0)
        for i, arm in enumerate(arms):  # the colours are those of the curves
            wer, loss = arm.wer, losses[arm.name]
            if loss is None:
                continue
            x_bar = None
            if wer.low is not None and wer.high is not None:
                # the interval of a skewed bootstrap may exclude the rate itself
                x_bar = [[max(0.0, wer.err - wer.low)], [max(0.0, wer.high - wer.err)]]
            error = loss.standard_error
            axes.errorbar(
                wer.err,
                loss.delta,
                xerr=x_bar,
                yerr=None if error is None else 1.96 * error,
                fmt="o",
                capsize=3,
                elinewidth=1,
                color=f"C{i}",
                label=arm.name,
            )
        axes.margins(0.1)
        axes.set_xlabel(f"WER on {test_set} (%)")
        if next(filter(None, losses.values())).unit == "points":
            axes.set_ylabel("mean accuracy, adapted minus base LM (points)")
        else:
            axes.set_ylabel("perplexity, adapted against base LM (%)")
            axes.invert_yaxis()
        axes.set_title("ASR against text ability (upper left is best)", fontsize=10)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _draw_curves(arms: Sequence[ArmResults], path: Union[str, Path]) -> None:
    """Draw the loss of each epoch: validation solid, training dotted.

    No file is written where no training has recorded its curve.
    """
    Path(path).unlink(missing_ok=True)
    if not any(arm.curves for arm in arms):
        return
    with drawing(path, 7, 5) as axes:
        for i, arm in enumerate(arms):
            for phase, style in (("valid", "-"), ("train", ":")):
                losses = arm.curves.get(phase, [])
                label = arm.name if phase == "valid" else None
                epochs = range(1, len(losses) + 1)
                axes.plot(epochs, losses, style, color=f"C{i}", marker=".", label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss (nats per token)")
        axes.set_title("Validation (solid) and training (dotted)", fontsize=10)
        axes.legend(fontsize=8)


def _lost(loss: Degradation) -> float:
    return -loss.delta if loss.unit == "points" else loss.delta


def _describe(arm: ArmResults) -> str:
    return f"`{arm.base_lm['name']}` sha256 `{arm.base_lm['sha256'][:12]}`"


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
        if not _lost(loss) > 0:
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
