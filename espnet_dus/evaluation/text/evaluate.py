"""Base LM against adapted LM on the same text: what the adaptation cost.

Both run in one process, in the same precision and with the same batch size. The
adapted model is evaluated with its added layers kept. With them dropped it is the base
LM, which is verified on a sample of tokens. Each finished part is a file of its own, so
that an interrupted evaluation resumes, and the base LM's results serve every model
adapted from it.
"""

import hashlib
import json
import logging
import time
from importlib import metadata
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from espnet_dus.evaluation.text.metric import Metric, mean_of_independent, paired_delta
from espnet_dus.evaluation.text.models import Models
from espnet_dus.evaluation.text.perplexity import WINDOW, read_text, score_text
from espnet_dus.evaluation.text.tables import markdown
from espnet_dus.evaluation.text.tasks import (
    TASK_DIR,
    TextTask,
    expand_suites,
    load_tasks,
    primary_metric,
    run_task,
)
from espnet_dus.io import write_text

RESULTS_DEPEND_ON = ("torch", "transformers", "lm_eval")
Part = Dict[str, Dict[str, Metric]]  # "base", "adapted", "kl" -> name -> metric


def evaluate(
    base_lm: Union[str, Path],
    out_dir: Union[str, Path],
    config: Optional[Union[str, Path]] = None,
    model_file: Optional[Union[str, Path]] = None,
    texts: Sequence[Union[str, Path]] = (),
    tasks: Sequence[str] = (),
    data_dir: Optional[Union[str, Path]] = None,
    task_dir: Union[str, Path] = TASK_DIR,
    limit: Optional[int] = None,
    window: int = WINDOW,
    batch_size: int = 16,
    dtype: str = "float32",
    cache_dir: Optional[Union[str, Path]] = None,
    even_if_identical: bool = False,
    check_only: bool = False,
) -> Optional[Dict]:
    """Evaluate a base LM on text, and compare an adapted model with it.

    Args:
        base_lm: Base LM directory.
        out_dir: Directory to write: `results.json`, `results.md` and, in `parts/`, the
            finished parts.
        config: `config.yaml` of the adapted model's training; None: the base LM alone.
        model_file: Its checkpoint.
        texts: Text files for perplexity and KL divergence.
        tasks: Names of lm-evaluation-harness (hellaswag, arc_easy, ..., which it
            downloads), of local task files (local_lambada, ...), or of a suite: paper,
            or local_paper (all but MMLU, with local data).
        data_dir: Directory of the local tasks' data.
        task_dir: Files of local tasks.
        limit: Maximum number of items of each task and windows of each text, at even
            distances.
        window: Context of the perplexity in tokens.
        batch_size: Requests in a batch, the same for both models.
        dtype: Precision of both models: float32, or bfloat16, which is faster where the
            hardware has it.
        cache_dir: Directory of the base LM's results; None: below `out_dir`.
        even_if_identical: Evaluate the adapted model although its logits equal the base
            LM's, bit for bit.
        check_only: Only check that the texts and the items of the tasks exist.

    Returns:
        The content of `results.json`; None with `check_only`.

    Raises:
        ValueError: Something requested does not exist or does not fit; raised before
            anything is computed.
        RuntimeError: The data of a task cannot be loaded, or the adapted model with its
            added layers dropped is not the base LM.
    """
    sizes = {"limit": limit, "window": window, "batch_size": batch_size}
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}: expected at least 1")
    contents, loaded = _read_parts(texts, tasks, data_dir, task_dir)
    if check_only:
        return None
    models = Models(base_lm, config, model_file, dtype)
    evaluation = Evaluation(
        models,
        setting={
            "dtype": dtype,
            "device": models.device,  # devices round differently
            **sizes,
            "versions": {name: metadata.version(name) for name in RESULTS_DEPEND_ON},
        },
        parts_dir=Path(out_dir) / "parts",
        cache_dir=Path(cache_dir or Path(out_dir) / "parts"),
        even_if_identical=even_if_identical,
    )
    jobs = [(name, evaluation.text, text) for name, text in contents.items()]
    jobs += [(task.name, evaluation.task, task) for task in loaded]
    start = time.monotonic()
    parts = {}
    for done, (name, job, what) in enumerate(jobs, 1):
        gone = time.monotonic() - start
        logging.info(f"{name}: part {done} of {len(jobs)}, {gone:.0f} s elapsed")
        version = _sha256(what)[:16] if isinstance(what, str) else what.version
        parts[name] = {"version": version, **_summary(job(name, what))}

    results = {
        "base": vars(models.identity),
        "adapted": str(model_file) if model_file else None,
        "checkpoint": models.checkpoint,
        "identical_tokens": evaluation.identical_tokens,
        "dropped_tokens": evaluation.dropped_tokens,
        **evaluation.setting,
        "texts": {name: parts[name] for name in contents},
        "tasks": {task.name: parts[task.name] for task in loaded},
    }
    results["mean_delta"] = mean_delta(results["tasks"])
    write_text(Path(out_dir) / "results.json", json.dumps(results, indent=2) + "\n")
    write_text(Path(out_dir) / "results.md", markdown(results))
    return results


def _read_parts(
    texts: Sequence[Union[str, Path]],
    tasks: Sequence[str],
    data_dir: Optional[Union[str, Path]],
    task_dir: Union[str, Path],
) -> Tuple[Dict[str, str], List[TextTask]]:
    """Return the texts by name, and the tasks; see `evaluate`."""
    tasks = expand_suites(tasks)
    if not texts and not tasks:
        raise ValueError("nothing to evaluate: expected a text, tasks, or both")
    contents = {Path(path).stem: read_text(path) for path in texts}
    if len(contents) < len(texts):
        raise ValueError("two texts have the same name: rename one of the files")
    both = sorted(set(contents) & set(tasks))
    if both:
        raise ValueError(f"{both[0]} is a text and a task: rename the text's file")
    return contents, load_tasks(tasks, data_dir, task_dir)


class Evaluation:
    """Runs the parts of an evaluation, each once.

    A part is computed for the base LM and for an adapted model that differs from it. A
    model whose logits equal the base LM's gets the base LM's results, if they are known
    already.

    Args:
        models: The models.
        setting: What every part depends on; stored with each result.
        parts_dir: Directory of the adapted model's results.
        cache_dir: Directory of base LMs' results.
        even_if_identical: Treat an identical model like one that differs.

    Attributes:
        identical_tokens: Number of tokens on which all logits equal the base LM's with
            the added layers kept: 0 if the adapted model differs, None without one.
        dropped_tokens: The same with the added layers dropped; None without an adapted
            model, or where the base LM is not inside it (arm `full`).
    """

    def __init__(
        self,
        models: Models,
        setting: Dict,
        parts_dir: Path,
        cache_dir: Path,
        even_if_identical: bool = False,
    ):
        self.models, self.setting = models, setting
        self.parts_dir = parts_dir
        self.cache_dir = cache_dir / models.identity.sha256[:16]
        self.harness: Dict[str, object] = {}
        self.identical_tokens = models.equal_tokens()
        self.dropped_tokens = models.equal_tokens(dropped=True)
        if self.dropped_tokens == 0:
            raise RuntimeError(
                f"{models.model_file}: with its added layers dropped, the model is not "
                "the base LM: something changed frozen parameters"
            )
        if self.identical_tokens:
            logging.info(
                f"identical by construction, verified on {self.identical_tokens} tokens"
            )
        self.reuse = bool(self.identical_tokens) and not even_if_identical
        self.compare = self.identical_tokens is not None and not self.reuse

    def text(self, name: str, text: str) -> Part:
        """Return perplexities of a text, and KL(base || adapted) on it."""

        def compute() -> Part:
            return score_text(
                text,
                self.models.tokenizer,
                self.models.base,
                self.models.adapted if self.compare else None,
                window=self.setting["window"],
                limit=self.setting["limit"],
            )

        # Both read a text side by side: KL needs the logits of both.
        models = ["base", "adapted"] if self.compare else ["base"]
        return self._part(name, models, {"text": _sha256(text)}, compute)

    def task(self, name: str, task: TextTask) -> Part:
        """Return the metrics of a task."""
        part = {}
        for model in ("base", "adapted") if self.compare else ("base",):

            def compute() -> Part:
                from espnet_dus.evaluation.text.harness import HarnessLM

                if model not in self.harness:
                    self.harness[model] = HarnessLM(
                        getattr(self.models, model),
                        self.models.tokenizer,
                        self.setting["batch_size"],
                    )
                limit = self.setting["limit"]
                return {model: run_task(task, self.harness[model], limit)}

            key = {"task": task.name, "version": task.version}
            part.update(self._part(name, [model], key, compute))
        return part

    def _part(
        self, name: str, models: List[str], key: Dict, compute: Callable[[], Part]
    ) -> Part:
        """Return a part from its file; or compute it, unless results are reused."""
        key = {**self.setting, **key, "models": [self.models.sha256[m] for m in models]}
        directory = self.cache_dir if models == ["base"] else self.parts_dir
        digest = _sha256(json.dumps(key, sort_keys=True))
        path = directory / f"{name}-{digest[:16]}.json"
        part: Part = {}
        if path.is_file():
            logging.info(f"{name}: already done, {path}")
            stored = json.loads(path.read_text(encoding="utf-8"))["part"]
            part = _each(stored, Metric.from_json)
        elif not self.reuse:
            start = time.monotonic()
            part = compute()
            seconds = round(time.monotonic() - start, 1)
            content = {"key": key, "seconds": seconds}
            content["part"] = _each(part, Metric.to_json)
            write_text(path, json.dumps(content) + "\n")
            logging.info(f"{name}: {', '.join(part)}: {seconds} s")
        if self.reuse and "base" in part:
            part["adapted"] = part["base"]
        return part


def _each(part: Dict[str, Dict], convert: Callable) -> Dict[str, Dict]:
    return {
        model: {name: convert(metric) for name, metric in metrics.items()}
        for model, metrics in part.items()
    }


def _summary(part: Part) -> Dict:
    """Compare the two models on a part.

    Returns:
        `metrics`: by name the result of `paired_delta`, or `base` alone; `items`: their
        number; and `kl_per_token` in nats where both models read a text.
    """
    base, adapted = part.get("base", {}), part.get("adapted", {})
    metrics = {
        name: (
            paired_delta(base[name], adapted[name])
            if name in adapted
            else {"base": base[name].score}
        )
        for name in base
    }
    result = {
        "items": max((len(metric.items) for metric in base.values()), default=0),
        "metrics": metrics,
    }
    if "kl" in part:
        result["kl_per_token"] = part["kl"]["kl_per_token"].score
    return result


def mean_delta(tasks: Dict[str, Dict]) -> Optional[Dict]:
    """Average the tasks' accuracies and their deltas, each task with the same weight.

    Args:
        tasks: Results of the tasks, see `_summary`.

    Returns:
        `base` and `adapted` (mean accuracies), `delta`, its `standard_error`, and
        `metrics`: the accuracy used for each task. None if no task has one for both
        models.
    """
    chosen = {
        name: primary_metric(
            [n for n, metric in task["metrics"].items() if "delta" in metric]
        )
        for name, task in tasks.items()
    }
    chosen = {name: metric for name, metric in chosen.items() if metric}
    if not chosen:
        return None
    picked = [tasks[name]["metrics"][metric] for name, metric in chosen.items()]
    delta, error = mean_of_independent(
        *([metric[name] for metric in picked] for name in ("delta", "standard_error"))
    )
    return {
        **{n: float(np.mean([m[n] for m in picked])) for n in ("base", "adapted")},
        "delta": delta,
        "standard_error": error,
        "metrics": chosen,
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
