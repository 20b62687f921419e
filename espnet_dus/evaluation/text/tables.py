"""The results of a text evaluation as Markdown."""

from typing import Any, Dict, List, Optional

from tabulate import tabulate

from espnet_dus.evaluation.text.tasks import PRIMARY

EXACT = "0 exactly"


def markdown_table(rows: List[Dict[str, Any]]) -> str:
    """Return a Markdown table of rows, each a dict from column to cell."""
    return tabulate(
        rows, headers="keys", tablefmt="pipe", disable_numparse=True, missingval=""
    )


def plus_minus(error: Optional[float], scale: float = 1) -> str:
    """Return a standard error to be written after its value; empty if unknown."""
    return "" if error is None else f" +- {scale * error:.2f}"


def markdown(results: Dict) -> str:
    """Return the results of `evaluate` as a Markdown page.

    Args:
        results: The content of `results.json`.

    Returns:
        The models, and a table of metrics with deltas and paired standard errors.
    """
    base = results["base"]
    limit = results["limit"]
    lines = [
        "# Text evaluation",
        "",
        f"- base LM: `{base['name']}` {base['revision']} sha256 "
        f"`{base['sha256'][:12]}`",
        model_line(results),
        f"- {results['dtype']}, batch size {results['batch_size']}, window "
        f"{results['window']} tokens, "
        + (f"at most {limit} items of each part" if limit else "all items"),
        "",
    ]
    return "\n".join(lines + summary_lines(results)) + "\n"


def model_line(results: Dict) -> str:
    """Return the checkpoint of an evaluation as a Markdown line."""
    checkpoint = results.get("checkpoint")  # not in results of earlier versions
    sha256 = f" sha256 `{checkpoint[:12]}`" if checkpoint else ""
    return f"- adapted model: `{results['adapted'] or 'none'}`{sha256}"


def summary_lines(results: Dict) -> List[str]:
    """Return all metrics as a Markdown table, with remarks.

    The adapted model has a row with its added layers kept and, if the base LM is inside
    it, one with them dropped.

    Args:
        results: The content of `results.json`.

    Returns:
        The lines. Accuracies and their deltas are in percent, KL is in nats.
    """
    lines = []
    if results["identical_tokens"]:
        lines += [
            "Text-only logits of the adapted model equal the base LM's bit for bit "
            "with the added layers kept: identical by construction, verified on "
            f"{results['identical_tokens']} tokens.",
            "",
        ]
    dropped = results.get("dropped_tokens")
    if dropped and not results["identical_tokens"]:
        lines += [
            "With the added layers dropped, the adapted model is the base LM: its "
            f"logits were verified bit for bit on {dropped} tokens.",
            "",
        ]
    rows = []
    for name, part in {**results["texts"], **results["tasks"]}.items():
        kl = f"{part['kl_per_token']:.4f}" if "kl_per_token" in part else ""
        for metric, value in part["metrics"].items():
            scale = 100 if metric.split(",")[0] in PRIMARY else 1
            base = f"{scale * value['base']:.2f}"
            row = {
                "text or task": name,
                "items": part["items"],
                "metric": metric,
                "base": base,
                "added layers": "",
                "adapted": "",
                "delta": "",
                "KL per token": kl,
            }
            if "delta" in value:
                row["added layers"] = "kept"
                row["adapted"] = f"{scale * value['adapted']:.2f}"
                row["delta"] = f"{scale * value['delta']:+.2f}" + plus_minus(
                    value["standard_error"], scale
                )
            rows.append(row)
            if dropped and not results["identical_tokens"]:
                kl_dropped = "0.0000" if kl else ""
                cells = ("dropped", base, EXACT, kl_dropped)
                columns = ("added layers", "adapted", "delta", "KL per token")
                rows.append({**row, **dict(zip(columns, cells))})
    if rows:
        lines.append(markdown_table(rows))
    mean = results["mean_delta"]
    if mean:
        chosen = ", ".join(f"{task} {name}" for task, name in mean["metrics"].items())
        means = ""
        if "base" in mean:
            means = f"base {100 * mean['base']:.2f}, kept {100 * mean['adapted']:.2f}, "
        lines += [
            "",
            f"Mean of the tasks' accuracies, in percent: {means}delta "
            f"{100 * mean['delta']:+.2f}{plus_minus(mean['standard_error'], 100)} "
            f"({chosen}).",
        ]
    return lines
