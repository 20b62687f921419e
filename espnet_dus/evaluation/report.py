"""RESULTS.md of an experiment, in ESPnet's format."""

import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Dict, List, Tuple, Union

from espnet_dus.evaluation.results import read_config, read_json
from espnet_dus.evaluation.scoring import RATES, SCORES, read_result
from espnet_dus.evaluation.text.tables import markdown_table, model_line, summary_lines
from espnet_dus.io import write_text

# utterances; in a smaller set one error moves the WER by a point or more
SMALLEST_TEST_SET = 50


def write_results(exp_dir: Union[str, Path]) -> str:
    """Write `RESULTS.md` of an experiment.

    Args:
        exp_dir: Experiment directory with `<inference_tag>/<set>/score_*/result.txt`
            and, if available, `config.yaml`, `params.json` and
            `**/text_eval/results.json`.

    Returns:
        The text written.

    Raises:
        ValueError: The directory is missing, or nothing in it is scored.
    """
    exp_dir = Path(exp_dir)
    if not exp_dir.is_dir():
        raise ValueError(f"{exp_dir}: no such experiment directory")
    scores = {
        score: {
            "/".join(path.relative_to(exp_dir).parts[:-2]): read_result(path)
            for path in sorted(exp_dir.glob(f"*/**/score_{score}/result.txt"))
        }
        for score in SCORES
    }
    texts = sorted(exp_dir.glob("**/text_eval/results.json"))
    if not any(scores.values()) and not texts:
        raise ValueError(
            f"{exp_dir}: no <inference_tag>/<set>/score_wer/result.txt in it; decode "
            "and score first (stages 12 and 13)"
        )
    lines = ["# RESULTS", *environments(), f"## {exp_dir}", *_model(exp_dir), ""]
    for score, results in scores.items():
        if results:
            lines += _score_table(score, results)
    for results in map(read_json, texts):
        lines += ["### Text", "", model_line(results), ""]
        lines += [*summary_lines(results), ""]
    text = "\n".join(lines)
    write_text(exp_dir / "RESULTS.md", text)
    return text


def environments() -> List[str]:
    """Return date and versions as Markdown lines."""
    python = sys.version.replace("\n", " ")
    commit, date = _git()
    packages = {"espnet": "espnet", "pytorch": "torch", "transformers": "transformers"}
    return [
        "## Environments",
        f"- date: `{time.strftime('%a %b %d %H:%M:%S %Z %Y')}`",
        f"- python version: `{python}`",
        *(f"- {n} version: `{n} {_version(p)}`" for n, p in packages.items()),
        f"- espnet_dus Git hash: `{commit}`",
        f"  - Commit date: `{date}`",
        "",
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _git() -> Tuple[str, str]:
    """Return hash and date of the commit that this package is a checkout of."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # another repository's, or none
        return "unknown", "unknown"
    command = ["git", "-C", str(root), "log", "-1", "--format=%H%n%cd"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        commit, date = done.stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "unknown", "unknown"
    return commit, date


def _model(exp_dir: Path) -> List[str]:
    lines = []
    if config := read_config(exp_dir).get("config"):
        lines.append(f"- ASR config: [{config}]({config})")
    if counts := read_json(exp_dir / "params.json"):
        share = 100 * counts["trained"] / counts["total"]
        lines.append(
            f"- Params: {counts['trained'] / 1e6:.2f} M trained of "
            f"{counts['total'] / 1e6:.2f} M ({share:.1f} %)"
        )
        if base_lm := counts.get("base_lm"):
            lines.append(
                f"- Base LM: `{base_lm['name']}` {base_lm['revision']} sha256 "
                f"`{base_lm['sha256'][:12]}`"
            )
    return lines


def _score_table(score: str, results: Dict[str, Dict[str, float]]) -> List[str]:
    rows = [
        {
            "dataset": name,
            "Snt": f"{result['Snt']:.0f}",
            "Wrd": f"{result['Wrd']:.0f}",
            **{rate: f"{result[rate]:.1f}" for rate in RATES},
        }
        for name, result in results.items()
    ]
    lines = [f"### {score.upper()}", "", markdown_table(rows), ""]
    for name, result in results.items():
        if "low" in result:
            lines.append(
                f"- {name}: 95 % interval of Err {result['low']:.1f} to "
                f"{result['high']:.1f} (bootstrap over utterances)"
            )
        if result["Snt"] < SMALLEST_TEST_SET:
            lines.append(
                f"- {name}: the set of {result['Snt']:.0f} utterances is too small to "
                "measure anything"
            )
    return lines + [""]
