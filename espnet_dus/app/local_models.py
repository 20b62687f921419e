"""MODEL of the command line: an experiment, a checkpoint, a pack or a hub id.

Nothing here imports torch before a model is loaded, so that listing models is quick.
"""

import json
import logging
import os
import zipfile
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Optional, Tuple, Union

import yaml

from espnet_dus.io import default_cache, read_yaml
from espnet_dus.zoo import FETCHED, PATHS, find_option

# The checkpoint of an experiment directory: the first of these that exists.
CHECKPOINTS = ("valid.acc.ave.pth", "train.acc.ave.pth", "model.pth", "latest.pth")
WHERE = ("exp", "egs2/*/dus1/exp")


class LocalModel(NamedTuple):
    """A model on this machine."""

    name: str  # the value for `--model`
    adaptation: str  # the arm, with kind and scope of added layers
    base_lm: str  # the base LM's name
    trained: Optional[int] = None  # number of trained parameters, if known


def load(model: str, base_lm: Optional[str] = None, **options: Any):
    """Load a model.

    Args:
        model: An experiment directory, a checkpoint in one, a pack (.zip), its URL, or
            `user/name[@revision]` on the Hugging Face hub.
        base_lm: The base LM's directory for a pack or hub id; None: it is fetched.
        options: Options of `Speech2Text`.

    Returns:
        A `Speech2Text` that computes word times if the model has a CTC head.

    Raises:
        ValueError: The model, or a file of it, does not exist.
        RuntimeError: It could not be fetched, or does not fit its configuration.
    """
    from espnet_dus import Speech2Text

    if Path(model).is_dir() or Path(model).suffix == ".pth":
        if base_lm is not None:
            raise ValueError(
                f"base_lm: {base_lm} is for packs and hub ids; {model} is an "
                "experiment and names its own in config.yaml"
            )
        config, checkpoint = experiment_files(model)
        with chdir(training_directory(config)):
            speech2text = Speech2Text(config, checkpoint, **options)
            speech2text.speech_tokenizer  # loaded here, where its path leads to it
    else:
        speech2text = Speech2Text.from_pretrained(model, base_lm, **options)
    timed = speech2text.model.ctc is not None
    speech2text.search = replace(speech2text.search, word_times=timed)
    return speech2text


def experiment_files(path: Union[str, Path]) -> Tuple[Path, Path]:
    """Find an experiment's configuration and its checkpoint.

    Args:
        path: The directory, or one of its checkpoints.

    Returns:
        Both, as absolute paths.

    Raises:
        ValueError: One of them is missing.
    """
    path = Path(path).absolute()
    directory, names = path, CHECKPOINTS
    if path.suffix == ".pth":
        directory, names = path.parent, (path.name,)
    config = directory / "config.yaml"
    if not config.is_file():
        raise ValueError(
            f"{directory}: no config.yaml there; expected an experiment directory such "
            "as exp/dus_x (espnet-dus models lists those of this machine)"
        )
    for name in names:
        if (directory / name).is_file():
            return config, directory / name
    there = ", ".join(sorted(p.name for p in directory.glob("*.pth"))) or "none"
    raise ValueError(
        f"{directory}: no checkpoint {' or '.join(names)}; its checkpoints: {there}. "
        "Continue the training (stage 11), or name a checkpoint"
    )


def training_directory(config: Path) -> Path:
    """Find the directory that a training ran in, to which its paths are relative.

    Args:
        config: The `config.yaml` of the training.

    Returns:
        The working directory, or the first one above `config`, from which every file
        named in the configuration exists.

    Raises:
        ValueError: A file named in the configuration does not exist.
    """
    options = read_yaml(config)
    named = {}
    for option in PATHS:
        block, name = find_option(options, option)
        if path := block.get(name):
            named[option] = path
    candidates = [Path.cwd(), *config.absolute().parents]
    for directory in candidates:
        if all((directory / path).exists() for path in named.values()):
            return directory
    missing = [
        f"{name}: {path}"
        for name, path in named.items()
        if not any((directory / path).exists() for directory in candidates)
    ]
    raise ValueError(
        f"{config} names files that do not exist (searched from {Path.cwd()} and from "
        f"the directories above {config.name}): {', '.join(missing or named)}"
    )


def find_models(root: Union[str, Path] = ".") -> List[LocalModel]:
    """List the models on this machine.

    Files of other programs are passed over; for a file that is damaged, a warning is
    logged.

    Args:
        root: Directory whose `exp` and `egs2/*/dus1/exp` are searched for experiments
            and packs. Fetched models are in their cache.

    Returns:
        Experiments with a checkpoint, then packs, then fetched models.
    """
    root = Path(root)
    fetched = (default_cache() / "models").glob(f"*/{FETCHED}")
    found = [
        *_described(_experiment, _inside(root, "*/config.yaml")),
        *_described(_pack, _inside(root, "**/*.zip")),
    ]
    names = {os.path.abspath(model.name) for model in found}
    cached = _described(_fetched, sorted(fetched))
    return found + [model for model in cached if model.name not in names]


def _inside(root: Path, pattern: str) -> List[Path]:
    return [path for exp in WHERE for path in sorted(root.glob(f"{exp}/{pattern}"))]


def _described(
    describe: Callable[[Path], Optional[LocalModel]], paths: List[Path]
) -> List[LocalModel]:
    found = []
    for path in paths:
        try:
            model = describe(path)
        except (
            *(ValueError, LookupError, TypeError, AttributeError, OSError),
            *(yaml.YAMLError, zipfile.BadZipFile),
        ) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            logging.warning(f"{path} is skipped, it cannot be read: {reason}")
        else:
            found += [model] if model else []
    return found


def _experiment(config: Path) -> Optional[LocalModel]:
    if not any((config.parent / name).is_file() for name in CHECKPOINTS):
        return None  # not trained yet
    params = config.with_name("params.json")
    counts = json.loads(params.read_text("utf-8")) if params.is_file() else {}
    name = (counts.get("base_lm") or {}).get("name")
    text = config.read_text("utf-8")
    return _model(str(config.parent), text, name, counts.get("trained"))


def _pack(archive: Path) -> Optional[LocalModel]:
    if not zipfile.is_zipfile(archive):
        return None
    with zipfile.ZipFile(archive) as members:
        if "meta.yaml" not in members.namelist():
            return None
        meta = yaml.safe_load(members.read("meta.yaml"))
        if "base_lm" not in meta:
            return None  # a pack of another task of ESPnet
        config = members.read(meta["yaml_files"]["asr_train_config"]).decode("utf-8")
    return _model(str(archive), config, meta["base_lm"]["name"])


def _fetched(path: Path) -> Optional[LocalModel]:
    fetched = json.loads(path.read_text("utf-8"))
    config = path.with_name("config.yaml").read_text("utf-8")
    return _model(fetched["model"], config, fetched["base_lm"])


def _model(
    name: str, config: str, base_lm: Optional[str], trained: Optional[int] = None
) -> Optional[LocalModel]:
    """Describe a model by its configuration; None if it is not of this package."""
    options = yaml.safe_load(config)
    if not isinstance(options, dict) or not {"adaptation", "base_lm"} <= set(options):
        return None
    adaptation = options["adaptation"]
    if adaptation == "dus":
        conf = options.get("adaptation_conf") or {}
        chosen = (conf.get(key) for key in ("kind", "scope"))
        adaptation = " ".join(filter(None, ("dus", *chosen)))
    base_lm = base_lm or os.path.basename(str(options["base_lm"]))
    return LocalModel(name, adaptation, base_lm, trained)
