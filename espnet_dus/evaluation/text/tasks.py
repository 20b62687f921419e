"""Text tasks: lm-evaluation-harness on a model object, also with local data."""

import hashlib
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Union

from espnet_dus.evaluation.text.metric import Metric, spread
from espnet_dus.io import read_yaml

# Names of tasks of lm-evaluation-harness, which downloads their data
DOWNLOADED = (
    "hellaswag arc_easy arc_challenge boolq piqa openbookqa winogrande commonsense_qa "
    "mmlu mmlu_continuation triviaqa gsm8k lambada_openai wikitext"
).split()
# The benchmarks whose mean the paper reports, and those of them with local data
PAPER = "arc_easy arc_challenge boolq hellaswag openbookqa piqa winogrande".split()
SUITES = {"paper": [*PAPER, "mmlu"], "local_paper": [f"local_{t}" for t in PAPER]}
TASK_DIR = Path(__file__).resolve().parents[3] / "egs2/TEMPLATE/dus1/conf/text_tasks"
PRIMARY = ("acc_norm", "acc", "exact_match")  # the first of these that a task has
REQUIRED = (  # keys of a local task's file
    "task",
    "dataset_kwargs.data_files.test",
    "test_split",
    "output_type",
    "doc_to_text",
    "doc_to_target",
    "metadata.version",
)
# The harness's aggregation of a metric -> kind and item of `Metric`, of a sample
AGGREGATIONS = {
    "mean": lambda value: ("mean", (float(value), 1.0)),
    "perplexity": lambda value: ("perplexity", (-value, 1.0)),
    "weighted_perplexity": lambda value: ("perplexity", (-value[0], value[1])),
    "bits_per_byte": lambda value: ("mean", (-value[0] / math.log(2), value[1])),
}


@dataclass(frozen=True)
class TextTask:
    """A task, or a group of tasks, whose data are read and checked."""

    name: str
    # What the scores depend on besides the model: the task's version and, for local
    # data, a hash of the task file and of the data.
    version: str
    leaves: Mapping[str, object]  # the harness's task objects by name


def expand_suites(names: Sequence[str]) -> List[str]:
    """Return task names with each name of `SUITES` replaced by its tasks, each once."""
    return list(dict.fromkeys(t for name in names for t in SUITES.get(name, (name,))))


def load_tasks(
    names: Sequence[str],
    data_dir: Optional[Union[str, Path]] = None,
    task_dir: Union[str, Path] = TASK_DIR,
) -> List[TextTask]:
    """Find tasks by name and read their data.

    Args:
        names: Names of `DOWNLOADED`, or of task files (`local_*.yaml`) in `task_dir`.
        data_dir: Directory of the data files that local tasks name.
        task_dir: Directory of the local tasks' files.

    Returns:
        The tasks, in the order of `names`.

    Raises:
        ValueError: A name is unknown, a data file is missing, an item lacks a field
            that the task needs, a task file lacks a key, or a metric is aggregated in
            a way that cannot be compared item by item.
        RuntimeError: The data of a harness task cannot be loaded.
    """
    local = {path.stem: path for path in sorted(Path(task_dir).glob("*.yaml"))}
    unknown = [name for name in names if name not in local and name not in DOWNLOADED]
    if unknown:
        raise ValueError(
            f"unknown text task {', '.join(unknown)}; expected suites "
            f"({', '.join(SUITES)}), tasks that are downloaded "
            f"({', '.join(DOWNLOADED)}), or tasks with local data in {task_dir} "
            f"({', '.join(local) or 'none'})"
        )
    tasks = {n: _local_task(local[n], data_dir) for n in names if n in local}
    tasks.update(_downloaded_tasks([name for name in names if name not in local]))
    for name in names:
        _check_metrics(tasks[name])
    return [tasks[name] for name in names]


def run_task(task: TextTask, harness, limit: Optional[int] = None) -> Dict[str, Metric]:
    """Score a model on a task.

    Args:
        task: The task.
        harness: The model, as `HarnessLM`.
        limit: Maximum number of items of each (sub)task, at even distances.

    Returns:
        Metrics by name. Where a task has several filters, a comma and the filter's name
        follow (`exact_match,strict-match`).
    """
    from lm_eval.evaluator import evaluate

    chosen = {
        name: spread(len(leaf.eval_docs), limit) for name, leaf in task.leaves.items()
    }
    for leaf in task.leaves.values():
        leaf.set_fewshot_seed(seed=1234)
        if leaf.get_config("num_fewshot") is None:
            leaf.set_config(key="num_fewshot", value=0)
    results = evaluate(
        lm=harness,
        task_dict={"tasks": dict(task.leaves), "groups": {}, "group_map": {}},
        samples=chosen if limit is not None else None,
        bootstrap_iters=0,
        log_samples=True,
    )
    items: Dict[str, List] = {}
    kinds: Dict[str, str] = {}
    for name, leaf in task.leaves.items():
        aggregations = leaf.aggregation()
        for sample in results["samples"][name]:
            for metric in sample["metrics"]:
                key = metric
                if sample["filter"] != "none":
                    key += f",{sample['filter']}"
                to_item = AGGREGATIONS[aggregations[metric].__name__]
                kinds[key], item = to_item(sample[metric])
                items.setdefault(key, []).append(item)
    return {key: Metric(kinds[key], items[key]) for key in items}


def primary_metric(metrics: Sequence[str]) -> Optional[str]:
    """Return the metric that represents a task in the mean: an accuracy.

    Args:
        metrics: Names of a task's metrics.

    Returns:
        The first of `PRIMARY` that is among them; None if none is, as for a perplexity.
    """
    for wanted in PRIMARY:
        for metric in metrics:
            if metric.split(",")[0] == wanted:
                return metric
    return None


def _check_metrics(task: TextTask) -> None:
    for leaf in task.leaves.values():
        for metric, aggregation in leaf.aggregation().items():
            if aggregation.__name__ not in AGGREGATIONS:
                raise ValueError(
                    f"text task {task.name}, metric {metric}: the aggregation "
                    f"{aggregation.__name__} is not one of {', '.join(AGGREGATIONS)}"
                )


def _local_task(path: Path, data_dir: Optional[Union[str, Path]]) -> TextTask:
    """Read and check a task file and its items."""
    config = read_yaml(path)
    missing = [key for key in REQUIRED if _nested(config, key) is None]
    if missing:
        raise ValueError(f"{path}: the task file lacks {', '.join(missing)}")
    name = _nested(config, "dataset_kwargs.data_files.test")
    if data_dir is None:
        raise ValueError(
            f"the text task {path.stem} needs --data_dir, a directory with {name}"
        )
    data = Path(data_dir) / name
    if not data.is_file():
        raise ValueError(f"{data}: no such file; the text task {path.stem} needs it")
    items = [
        _parse_item(line, f"{data}:{number}", config)
        for number, line in enumerate(data.open(encoding="utf-8-sig"), 1)
        if line.strip()
    ]
    if not items:
        raise ValueError(f"{data}: no items for the text task {path.stem}")
    digest = hashlib.sha256(path.read_bytes() + data.read_bytes()).hexdigest()

    import datasets
    from lm_eval.api.task import ConfigurableTask

    split = {config["test_split"]: datasets.Dataset.from_list(items)}
    # The items are checked and in memory: no copy in the user's cache
    leaf = ConfigurableTask(config={**config, "custom_dataset": lambda **_: split})
    version = f"{config['metadata']['version']}-{digest[:16]}"
    return TextTask(config["task"], version, {config["task"]: leaf})


def _parse_item(line: str, where: str, config: Dict) -> Dict:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(item, dict):
        raise ValueError(f"{where}: not a JSON object, but {line.strip()[:80]}")
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        missing = [field for field in _fields(config.get(key)) if field not in item]
        if missing:
            raise ValueError(
                f"{where}: the item has no field {', '.join(missing)}, which {key} of "
                f"the text task {config['task']} needs; it has {', '.join(item)}"
            )
    choices = item.get("choices", item.get("context_options", ()))
    # 1.0 and true equal 1, but the harness finds no choice of that name
    if "gold" in item and (
        type(item["gold"]) is not int or item["gold"] not in range(len(choices))
    ):
        raise ValueError(
            f"{where}: gold is {item['gold']!r}, expected the index of one of the "
            f"{len(choices)} choices"
        )
    return item


def _nested(config: Dict, key: str):
    """Return the value of a dotted key, or None."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _fields(template) -> List[str]:
    """Return the fields of an item that a template of a task file uses."""
    import jinja2
    from jinja2 import meta

    if not isinstance(template, str):
        return []
    return sorted(meta.find_undeclared_variables(jinja2.Environment().parse(template)))


def _downloaded_tasks(names: Sequence[str]) -> Dict[str, TextTask]:
    if not names:
        return {}
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    tasks = {}
    for name in names:
        logging.info(f"loading the data of the text task {name}")
        try:
            leaves = manager.load([name])["tasks"]
        except Exception as error:  # noqa: B902: whatever the data's host raises
            raise RuntimeError(
                f"the data of the text task {name} cannot be loaded ({error}); it is "
                "downloaded from the Hugging Face hub. Without a network, use the "
                "local_ tasks"
            ) from error
        versions = sorted({str(leaf.VERSION) for leaf in leaves.values()})
        tasks[name] = TextTask(name, ",".join(versions), leaves)
    return tasks
