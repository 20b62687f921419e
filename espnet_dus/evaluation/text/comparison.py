"""Base LM against adapted LM on the same text: what the adaptation cost.

Both run in one process, in the same precision and with the same batch size. Whatever is
finished stands in a file of its own, so an interrupted evaluation goes on where it was,
and the base LM's results serve every model adapted from it.
"""

import hashlib
import json
import logging
import time
from importlib import metadata
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from espnet_dus.evaluation.text.metric import Metric, paired_delta
from espnet_dus.evaluation.text.models import Models, count_equal_tokens
from espnet_dus.evaluation.text.perplexity import WINDOW, read_text, score_text
from espnet_dus.evaluation.text.report import markdown
from espnet_dus.evaluation.text.tasks import (
    TASK_DIR,
    TextTask,
    load_tasks,
    primary_metric,
    run_task,
)
from espnet_dus.io import write_text

PACKAGES = ("torch", "transformers", "lm_eval")
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
) -> Dict:
    """Evaluate a base LM on text, and compare an adapted model with it.

    Args:
        base_lm: Base LM directory.
        out_dir: Gets `results.json`, `results.md` and, in `parts/`, what is finished.
        config: `config.yaml` of the adapted model's training; None for the base alone.
        model_file: Its checkpoint.
        texts: Text files for perplexity and KL divergence.
        tasks: Names of text tasks, see `tasks.load_tasks`.
        data_dir: Data of local tasks.
        task_dir: Files of local tasks.
        limit: At most this many items of each task and windows of each text.
        window: Context of the perplexity in tokens.
        batch_size: Requests in a batch, the same for both models.
        dtype: Precision of both models: `float32`, or `bfloat16`.
        cache_dir: Where the base LM's results stand; None for below `out_dir`.
        even_if_identical: Evaluate the adapted model although its logits are those of
            the base LM bit for bit.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: Something asked for does not exist or does not fit; found before
            anything is computed.
        RuntimeError: The data of a task cannot be loaded.
    """
    for name, value in (
        ("limit", limit),
        ("window", window),
        ("batch_size", batch_size),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}: expected at least 1")
    models = Models(base_lm, config, model_file, dtype)
    contents, loaded = read_parts(texts, tasks, data_dir, task_dir)

    evaluation = Evaluation(
        models,
        setting={
            "dtype": dtype,
            "limit": limit,
            "window": window,
            "batch_size": batch_size,
            "versions": {name: metadata.version(name) for name in PACKAGES},
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
        logging.info(f"{name}: part {done} of {len(jobs)}, {gone:.0f} s gone")
        version = _sha256(what)[:16] if isinstance(what, str) else what.version
        parts[name] = {"version": version, **summary(job(name, what))}

    results = {
        "base": vars(models.identity),
        "adapted": str(model_file) if model_file else None,
        "identical_tokens": evaluation.identical_tokens,
        **evaluation.setting,
        "texts": {name: parts[name] for name in contents},
        "tasks": {task.name: parts[task.name] for task in loaded},
    }
    results["mean_delta"] = mean_delta(results["tasks"])
    write_text(Path(out_dir) / "results.json", json.dumps(results, indent=2) + "\n")
    write_text(Path(out_dir) / "results.md", markdown(results))
    return results


def read_parts(
    texts: Sequence[Union[str, Path]] = (),
    tasks: Sequence[str] = (),
    data_dir: Optional[Union[str, Path]] = None,
    task_dir: Union[str, Path] = TASK_DIR,
) -> Tuple[Dict[str, str], List[TextTask]]:
    """Read what is to be evaluated; see `evaluate`.

    Returns:
        The texts by name, and the tasks.

    Raises:
        ValueError: Something asked for does not exist or does not fit.
        RuntimeError: The data of a task cannot be loaded.
    """
    if not texts and not tasks:
        raise ValueError("nothing to evaluate: give a text, tasks, or both")
    contents = {Path(path).stem: read_text(path) for path in texts}
    if len(contents) < len(texts):
        raise ValueError("two texts have the same name, rename one of the files")
    both = sorted(set(contents) & set(tasks))
    if both:
        raise ValueError(f"{both[0]} is a text and a task: rename the text's file")
    return contents, load_tasks(list(dict.fromkeys(tasks)), data_dir, task_dir)


class Evaluation:
    """Runs the parts of an evaluation, each once.

    A part is computed for the base LM and, where the adapted model differs from it,
    for that too. A model whose logits equal the base LM's is given the base LM's
    results, as far as they are known already.

    Args:
        models: The models.
        setting: What every part depends on; kept with each result.
        parts_dir: Where results of the adapted model stand.
        cache_dir: Where results of base LMs stand.
        even_if_identical: Treat an identical model as one that differs.

    Attributes:
        identical_tokens: Tokens on which all logits were equal: 0 where the adapted
            model differs, None without one.
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
        self.identical_tokens = None
        if "adapted" in models.sha256:
            self.identical_tokens = count_equal_tokens(models.base, models.adapted)
        if self.identical_tokens:
            logging.info(
                f"identical by construction, verified on {self.identical_tokens} tokens"
            )
        self.reuse = bool(self.identical_tokens) and not even_if_identical
        self.compare = self.identical_tokens is not None and not self.reuse

    def text(self, name: str, text: str) -> Part:
        """Perplexity of a text, and KL(base || adapted) on it."""

        def compute() -> Part:
            score = score_text(
                text,
                self.models.tokenizer,
                self.models.base,
                self.models.adapted if self.compare else None,
                window=self.setting["window"],
                limit=self.setting["limit"],
            )
            part = {"base": score.metrics("base")}
            if self.compare:
                part["adapted"] = score.metrics("adapted")
                part["kl"] = {"kl_per_token": score.kl_metric()}
            return part

        # The two read a text side by side, for KL needs the logits of both.
        models = ["base", "adapted"] if self.compare else ["base"]
        return self._part(name, models, {"text": _sha256(text)}, compute)

    def task(self, name: str, task: TextTask) -> Part:
        """Metrics of a task."""
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
        key = {**self.setting, **key, "models": [self.models.sha256[m] for m in models]}
        directory = self.cache_dir if models == ["base"] else self.parts_dir
        part = stored(directory, name, key, None if self.reuse else compute)
        if self.reuse and "base" in part:
            part["adapted"] = part["base"]
        return part


def stored(
    directory: Path, name: str, key: Dict, compute: Optional[Callable[[], Part]]
) -> Part:
    """Read a part's metrics from its file, or compute them and write the file.

    Args:
        directory: Where the file stands.
        name: What was evaluated, for the file's name.
        key: All that the metrics depend on.
        compute: Gives the metrics; None to take only what is there.

    Returns:
        The metrics; empty where there is no file and nothing to compute.
    """
    digest = _sha256(json.dumps(key, sort_keys=True))
    path = directory / f"{name}-{digest[:16]}.json"
    if path.is_file():
        logging.info(f"{name}: done before, {path}")
        part = json.loads(path.read_text(encoding="utf-8"))["part"]
        return {
            model: {n: Metric.from_json(metric) for n, metric in metrics.items()}
            for model, metrics in part.items()
        }
    if compute is None:
        return {}
    start = time.monotonic()
    part = compute()
    seconds = round(time.monotonic() - start, 1)
    to_json = {
        model: {n: metric.to_json() for n, metric in metrics.items()}
        for model, metrics in part.items()
    }
    content = {"key": key, "seconds": seconds, "part": to_json}
    write_text(path, json.dumps(content) + "\n")
    logging.info(f"{name}: {', '.join(part)}: {seconds} s")
    return part


def summary(part: Part) -> Dict:
    """Compare the two models on a part.

    Args:
        part: Metrics of "base", "adapted" and "kl", as far as there are any.

    Returns:
        `metrics`: by name what `paired_delta` gives, or `base` alone; `items`, their
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
    """Average the deltas of the tasks' accuracies, each task counting the same.

    Args:
        tasks: What `summary` gives, by task.

    Returns:
        `delta`, its `standard_error`, and `metrics`, the accuracy taken of each task;
        None where no task has one for both models.
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
    errors = [metric["standard_error"] for metric in picked]
    return {
        "delta": float(np.mean([metric["delta"] for metric in picked])),
        "standard_error": (
            None
            if None in errors
            else float(np.sqrt(np.sum(np.square(errors))) / len(errors))
        ),
        "metrics": chosen,
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
