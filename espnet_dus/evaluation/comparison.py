"""Arms side by side: one table, WER against text degradation, and training curves."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Union

from espnet_dus.evaluation.comparison_page import CURVES, NAME, describe, markdown
from espnet_dus.evaluation.comparison_plots import draw_curves, draw_trade_off
from espnet_dus.evaluation.degradation import degradation_avoided, degradations
from espnet_dus.evaluation.results import ArmResults, read_arm
from espnet_dus.evaluation.text.metric import Metric, paired_delta
from espnet_dus.io import write_text


def compare(
    exp_dirs: Sequence[Union[str, Path]],
    out_dir: Union[str, Path],
    test_set: Sequence[str] = ("test",),
    inference_tag: Optional[str] = None,
    reference: Optional[str] = None,
) -> str:
    """Write `comparison.{md,json,png}` and `curves.png` of several arms.

    Args:
        exp_dirs: Experiment directories of the arms.
        out_dir: Directory of the files. Without text results there is no picture.
        test_set: The sets whose WER is compared; the picture shows the first.
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
    test_sets = list(dict.fromkeys(test_set))
    arms = [read_arm(exp_dir, test_sets, inference_tag) for exp_dir in exp_dirs]
    _check_comparable(arms, test_sets)
    by_name = {arm.name: arm for arm in arms}
    if reference is not None and reference not in by_name:
        raise ValueError(f"reference: {reference!r} is none of {', '.join(by_name)}")
    compared_with = by_name[reference or arms[0].name]
    entropies = {
        test_set: _cross_entropies(arms, compared_with, test_set)
        for test_set in test_sets
    }
    losses = degradations(arms)
    avoided = degradation_avoided(arms, losses)

    out_dir = Path(out_dir)
    content = {
        "test_sets": test_sets,
        "base_lm": arms[0].base_lm,
        "arms": [
            {
                **asdict(arm),
                "share": arm.trained / arm.total,
                "degradation": losses[arm.name] and losses[arm.name]._asdict(),
                "degradation_avoided": avoided.get(arm.name),
                "cross_entropy": {
                    test_set: entropies[test_set][arm.name] for test_set in test_sets
                },
            }
            for arm in arms
        ],
    }
    write_text(out_dir / f"{NAME}.json", json.dumps(content, indent=2) + "\n")
    picture = out_dir / f"{NAME}.png"
    picture.unlink(missing_ok=True)
    if any(losses.values()):
        draw_trade_off(arms, losses, test_sets[0], picture)
    draw_curves(arms, out_dir / CURVES)
    text = markdown(arms, losses, avoided, entropies)
    write_text(out_dir / f"{NAME}.md", text)
    return text


def _check_comparable(arms: Sequence[ArmResults], test_sets: Sequence[str]) -> None:
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
                f"{describe(first)} and {describe(arm)}: compare each with its own"
            )
        for test_set in test_sets:
            expected, wer = first.sets[test_set].wer, arm.sets[test_set].wer
            if (wer.utterances, wer.tokens) != (expected.utterances, expected.tokens):
                raise ValueError(
                    f"{first.exp_dir} and {arm.exp_dir} were scored on different sets "
                    f"{test_set}, of {expected.utterances} utterances and "
                    f"{expected.tokens} words, and of {wer.utterances} and "
                    f"{wer.tokens}: decode again"
                )
    with_text = [arm for arm in arms if arm.text_setting]
    for arm in with_text[1:]:
        if arm.text_setting != with_text[0].text_setting:
            raise ValueError(
                f"{with_text[0].exp_dir} and {arm.exp_dir}: text evaluations differ, "
                f"{with_text[0].text_setting} and {arm.text_setting}; evaluate with "
                "the same options (stage 13)"
            )


def _cross_entropies(
    arms: Sequence[ArmResults], reference: ArmResults, test_set: str
) -> Dict[str, Optional[Dict[str, Any]]]:
    """Compare the cross-entropy of a test set's transcripts with one arm's.

    Returns:
        By name, in nats per token: `score`; `reference`, `delta` and `standard_error`,
        which is paired over the utterances. None where it was not measured.
    """
    result: Dict[str, Optional[Dict[str, Any]]] = {}
    known = reference.sets[test_set].cross_entropy
    for arm in arms:
        measured = arm.sets[test_set].cross_entropy
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
