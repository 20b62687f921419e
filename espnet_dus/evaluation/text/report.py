"""The results of a text evaluation as Markdown."""

from typing import Dict, List, Optional

from espnet_dus.evaluation.text.tasks import PRIMARY


def markdown(results: Dict) -> str:
    """Write the results of `comparison.evaluate` as a page.

    Args:
        results: What `results.json` holds.

    Returns:
        Markdown: the models, and a table of metrics with deltas and paired standard
        errors.
    """
    base = results["base"]
    limit = results["limit"]
    lines = [
        "# Text evaluation",
        "",
        f"- base LM: `{base['name']}` {base['revision']} sha256 "
        f"`{base['sha256'][:12]}`",
        f"- adapted model: `{results['adapted'] or 'none'}`",
        f"- {results['dtype']}, batch size {results['batch_size']}, window "
        f"{results['window']} tokens, "
        + (f"at most {limit} items of each part" if limit else "all items"),
        "",
    ]
    return "\n".join(lines + summary_lines(results)) + "\n"


def summary_lines(results: Dict) -> List[str]:
    """Lay out all metrics as a Markdown table, with what is to be said about them.

    Args:
        results: What `results.json` holds.

    Returns:
        The lines. Accuracies and their deltas are in percent, KL is in nats.
    """
    lines = []
    if results["identical_tokens"]:
        lines += [
            "Text-only logits of the adapted model are those of the base LM, bit for "
            "bit: identical by construction, verified on "
            f"{results['identical_tokens']} tokens.",
            "",
        ]
    lines += [
        "|text or task|items|metric|base|adapted|delta|KL per token|",
        "|---|---|---|---|---|---|---|",
    ]
    for name, part in {**results["texts"], **results["tasks"]}.items():
        kl = f"{part['kl_per_token']:.4f}" if "kl_per_token" in part else ""
        for metric, value in part["metrics"].items():
            scale = 100 if metric.split(",")[0] in PRIMARY else 1
            adapted = delta = ""
            if "delta" in value:
                adapted = f"{scale * value['adapted']:.2f}"
                delta = f"{scale * value['delta']:+.2f}"
                delta += _plus_minus(value["standard_error"], scale)
            lines.append(
                f"|{name}|{part['items']}|{metric}|{scale * value['base']:.2f}|"
                f"{adapted}|{delta}|{kl}|"
            )
    mean = results["mean_delta"]
    if mean:
        chosen = ", ".join(f"{task} {name}" for task, name in mean["metrics"].items())
        lines += [
            "",
            "Mean delta of the tasks' accuracies, in points: "
            f"{100 * mean['delta']:+.2f}{_plus_minus(mean['standard_error'], 100)} "
            f"({chosen}).",
        ]
    return lines


def _plus_minus(error: Optional[float], scale: float) -> str:
    return "" if error is None else f" +- {scale * error:.2f}"
