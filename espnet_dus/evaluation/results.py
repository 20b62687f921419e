"""The results of one arm, read from its experiment directory: ASR, text and cost."""

import glob
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from espnet_dus.evaluation.scoring import CROSS_ENTROPY, read_result
from espnet_dus.evaluation.text.tasks import PRIMARY, primary_metric
from espnet_dus.io import read_yaml

TEXT_SETTING = ("dtype", "limit", "window")  # what deltas depend on besides the data
TRAINING = (
    "epochs",
    "curves",
    "seconds_per_step",
    "wall_seconds",
    "peak_memory_bytes",
    "peak_memory_of",
)


@dataclass(frozen=True)
class ErrorRate:
    """An error rate in percent; the ends of its 95 % interval where they are known."""

    err: float
    low: Optional[float]
    high: Optional[float]
    utterances: int
    tokens: int


@dataclass(frozen=True)
class Delta:
    """A text metric of the adapted model minus the base LM's; accuracies are shares.

    `metric` and `base` are None where the model equals the base LM on text and the base
    LM was not evaluated; `standard_error` is None for a single item.
    """

    metric: Optional[str]
    base: Optional[float]
    delta: float
    standard_error: Optional[float]

    @property
    def is_accuracy(self) -> bool:
        """Whether the metric is a share of right answers."""
        return self.metric is not None and self.metric.split(",")[0] in PRIMARY

    def relative(self) -> Tuple[float, Optional[float]]:
        """Return the delta and its standard error relative to the base LM's score."""
        if self.base is None:
            return self.delta, self.standard_error  # both 0
        error = self.standard_error
        return self.delta / self.base, None if error is None else error / self.base


@dataclass(frozen=True)
class SetResults:
    """The figures of one arm on one test set."""

    decoding: str  # the directory below `exp_dir` that was scored
    wer: ErrorRate
    cer: Optional[ErrorRate] = None
    cross_entropy: Optional[Dict[str, Any]] = None  # of the transcripts
    rtfx: Optional[float] = None  # seconds of audio decoded per second of a job


@dataclass(frozen=True)
class ArmResults:
    """The figures of one arm; what is unknown is None or an empty table."""

    name: str  # the experiment directory's name without `dus_`
    exp_dir: str
    adaptation: Optional[str]  # `dus`, `lora`, `full` or `frozen`
    base_lm: Dict[str, str]  # name, revision and sha256
    trained: int  # number of parameters
    total: int
    sets: Dict[str, SetResults]  # by test set
    # options of the text evaluation; None where it was not run
    text_setting: Optional[Dict[str, Any]] = None
    retention: float = 0.0  # weight of text retention in training; 0: none
    # trained parameters as the paper counts them, see `checkpoint.count_as_paper`
    trained_as_paper: Optional[int] = None
    learning_rate: Optional[float] = None  # the highest of the training
    # Tokens on which text-only logits equal the base LM's, bit for bit, with the added
    # layers kept; 0 where the model differs. Then with the layers dropped; None where
    # the base LM is not inside the model, or that was not verified.
    identical_tokens: int = 0
    dropped_tokens: Optional[int] = None
    perplexity: Dict[str, Delta] = field(default_factory=dict)  # of tokens, by text
    tasks: Dict[str, Delta] = field(default_factory=dict)  # the primary metric of each
    # KL(base || adapted) in nats per token, by text
    kl: Dict[str, float] = field(default_factory=dict)
    mean_delta: Optional[Delta] = None  # over the tasks' accuracies
    epochs: Optional[int] = None
    # loss of each epoch, by phase (`train`, `valid`)
    curves: Dict[str, List[float]] = field(default_factory=dict)
    seconds_per_step: Optional[float] = None  # mean over all training steps
    wall_seconds: Optional[float] = None  # of all epochs, validation included
    peak_memory_bytes: Optional[int] = None  # in training
    peak_memory_of: Optional[str] = None  # `process` or `GPU`


def read_arm(
    exp_dir: Union[str, Path],
    test_sets: Sequence[str],
    inference_tag: Optional[str] = None,
) -> ArmResults:
    """Read the results of an arm.

    Args:
        exp_dir: Experiment directory after stages 11 to 13.
        test_sets: The sets whose WER counts.
        inference_tag: The decoding that counts; None where there is only one.

    Returns:
        All that is known.

    Raises:
        ValueError: The directory is missing, nothing was trained in it, or a test set
            was not decoded and scored, or more than once, or text and cross-entropy
            are of another checkpoint.
    """
    exp_dir = Path(exp_dir)
    if not exp_dir.is_dir():
        raise ValueError(f"{exp_dir}: no such experiment directory")
    params = read_json(exp_dir / "params.json")
    if params is None:
        raise ValueError(f"{exp_dir}: no params.json; train first (stage 11)")
    text_path = exp_dir / "text_eval" / "results.json"
    sets = {
        test_set: _read_set(exp_dir, test_set, inference_tag, text_path)
        for test_set in test_sets
    }
    training = read_json(exp_dir / "training.json") or {}
    return ArmResults(
        name=exp_dir.resolve().name.removeprefix("dus_"),
        exp_dir=str(exp_dir),
        **_config(read_config(exp_dir)),
        base_lm=params["base_lm"],
        trained=params["trained"],
        trained_as_paper=params.get("as_the_paper_counts"),
        total=params["total"],
        sets=sets,
        **_text(read_json(text_path)),
        **{name: training[name] for name in TRAINING if name in training},
    )


def _read_set(
    exp_dir: Path, test_set: str, inference_tag: Optional[str], text_path: Path
) -> SetResults:
    decoding = _find_decoding(exp_dir, test_set, inference_tag)
    jobs = [
        read_json(path)
        for path in sorted((decoding / "logdir").glob("output.*/decode.json"))
    ]
    for path in (text_path, decoding / CROSS_ENTROPY):
        _check_checkpoint(path, decoding, jobs)
    return SetResults(
        decoding=str(decoding.relative_to(exp_dir)),
        wer=_error_rate(decoding / "score_wer" / "result.txt"),
        cer=_error_rate(decoding / "score_cer" / "result.txt"),
        cross_entropy=read_json(decoding / CROSS_ENTROPY),
        rtfx=_rtfx(decoding, jobs),
    )


def read_json(path: Path) -> Optional[Dict]:
    """Return the content of a JSON file; None if there is none.

    Raises:
        ValueError: It is not JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def read_config(exp_dir: Path) -> Dict[str, Any]:
    """Return the options of a training; empty if they are not known.

    Raises:
        ValueError: `config.yaml` cannot be read.
    """
    path = exp_dir / "config.yaml"
    return read_yaml(path) if path.is_file() else {}


def _config(config: Dict[str, Any]) -> Dict[str, Any]:
    model_conf = config.get("model_conf") or {}
    return dict(
        adaptation=config.get("adaptation"),
        retention=float(model_conf.get("text_retention_weight") or 0.0),
        learning_rate=_highest_rate(config),
    )


def _highest_rate(config: Dict[str, Any]) -> Optional[float]:
    points = (config.get("scheduler_conf") or {}).get("warmup_lr_list")
    return max(points) if points else (config.get("optim_conf") or {}).get("lr")


def _find_decoding(exp_dir: Path, test_set: str, tag: Optional[str]) -> Path:
    result = "score_wer/result.txt"
    tags = glob.escape(tag) if tag else "*"
    found = sorted(exp_dir.glob(f"{tags}/{glob.escape(test_set)}/{result}"))
    if len(found) == 1:
        return found[0].parents[1]
    if found:
        tags = ", ".join(path.relative_to(exp_dir).parts[0] for path in found)
        raise ValueError(
            f"{exp_dir}: {test_set} was decoded more than once: {tags}; choose one "
            "with --inference_tag"
        )
    scored = (path.relative_to(exp_dir) for path in exp_dir.glob(f"*/**/{result}"))
    there = ", ".join(sorted(str(path.parents[1]) for path in scored)) or "nothing"
    raise ValueError(
        f"{exp_dir}: no {tag or '<inference_tag>'}/{test_set}/{result}, only {there} "
        f"is scored; decode and score {test_set} first (stages 12 and 13)"
    )


def _error_rate(path: Path) -> Optional[ErrorRate]:
    if not path.is_file():
        return None
    result = read_result(path)
    return ErrorRate(
        result["Err"],
        result.get("low"),
        result.get("high"),
        int(result["Snt"]),
        int(result["Wrd"]),
    )


def _text(results: Optional[Dict]) -> Dict[str, Any]:
    """Return the fields of `ArmResults` that come from the text evaluation."""
    if results is None or results["identical_tokens"] is None:  # None: base LM alone
        return {}
    identical = results["identical_tokens"]
    texts, tasks = results["texts"], results["tasks"]
    mean = results["mean_delta"]
    if identical:
        mean_delta = Delta(None, None, 0.0, 0.0) if tasks else None
        kl = dict.fromkeys(texts, 0.0)
    else:
        mean_delta = mean and Delta(None, None, mean["delta"], mean["standard_error"])
        kl = {name: part["kl_per_token"] for name, part in texts.items()}
    return dict(
        text_setting={
            **{name: results[name] for name in TEXT_SETTING},
            "parts": {
                name: part.get("version")
                for name, part in sorted({**texts, **tasks}.items())
            },
        },
        identical_tokens=identical,
        dropped_tokens=results.get("dropped_tokens"),
        perplexity={
            name: _delta(part["metrics"], "token_perplexity", identical)
            for name, part in texts.items()
        },
        tasks={
            name: _delta(
                part["metrics"],
                primary_metric(list(part["metrics"]))
                or next(iter(part["metrics"]), ""),
                identical,
            )
            for name, part in tasks.items()
        },
        kl=kl,
        mean_delta=mean_delta,
    )


def _delta(metrics: Dict[str, Dict], metric: str, identical: int) -> Delta:
    if metric not in metrics:  # the model is the base LM on text: not evaluated
        return Delta(None, None, 0.0, 0.0)
    value = metrics[metric]
    if identical:
        return Delta(metric, value["base"], 0.0, 0.0)
    return Delta(metric, value["base"], value["delta"], value["standard_error"])


def _check_checkpoint(path: Path, decoding: Path, jobs: Sequence[Dict]) -> None:
    """Check that a file of results is of the checkpoint that was decoded with.

    Files of earlier versions do not name theirs.
    """
    found = (read_json(path) or {}).get("checkpoint")
    decoded = {job.get("checkpoint") for job in jobs} - {None}
    if found and decoded and found not in decoded:
        raise ValueError(
            f"{path} is of another checkpoint than {decoding}: run stage 13 again with "
            "the --inference_dus_model of that decoding"
        )


def _rtfx(decoding: Path, jobs: Sequence[Dict]) -> Optional[float]:
    """Audio over decoding time, where the jobs' reports cover all that was decoded."""
    text = decoding / "text"
    if not jobs or not text.is_file():
        return None
    utterances = sum(job["utterances"] for job in jobs)
    if utterances != len(text.read_text(encoding="utf-8").splitlines()):
        return None  # reports of an earlier run with more jobs are among them
    seconds = sum(job["seconds"] for job in jobs)
    return sum(job["audio_seconds"] for job in jobs) / seconds if seconds else None
