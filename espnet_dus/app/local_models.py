"""MODEL of the command line: an experiment, a checkpoint, a pack or a hub id.

No import here loads torch: listing models is to be quick.
"""

import json
import os
import zipfile
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import yaml

from espnet_dus.io import default_cache
from espnet_dus.zoo import TAG

IDENTITY = "identity.json"  # of a base LM directory
# The checkpoint of an experiment directory: the first of these that is there.
CHECKPOINTS = ("valid.acc.ave.pth", "train.acc.ave.pth", "model.pth", "latest.pth")
# Options of a training that name files, relative to the directory that it ran in.
PATHS = ("base_lm", "bpemodel", "ctc_units", "non_linguistic_symbols")
WHERE = ("exp", "egs2/*/dus1/exp")


class LocalModel(NamedTuple):
    """A model that is on this machine.

    Attributes:
        name: What `--model` takes.
        what: The arm; of inserted layers their kind and scope.
        base_lm: The base LM's name.
        trained: How many parameters were trained, if that is known.
    """

    name: str
    what: str
    base_lm: str
    trained: Optional[int] = None


def load(model: str, base_lm: Optional[str] = None, **options: Any):
    """Load a model.

    Args:
        model: An experiment directory, a checkpoint in one, a pack (.zip), its URL, or
            `user/name[@revision]` on the Hugging Face hub.
        base_lm: Of a pack or hub id: the base LM's directory; None: it is fetched.
        options: Those of `Speech2Text`.

    Returns:
        A `Speech2Text`; it gives word times if the model has a CTC head.

    Raises:
        ValueError: There is no such model, or a file of it is missing.
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
        f"{directory}: no checkpoint {' or '.join(names)}; there are: {there}. Train "
        "on (stage 11), or name a checkpoint"
    )


def training_directory(config: Path) -> Path:
    """Find the directory that a training ran in, which its paths are relative to.

    Args:
        config: Its `config.yaml`.

    Returns:
        The working directory, or the first one above the file where all is found.

    Raises:
        ValueError: Something that the configuration names is nowhere.
    """
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    named = {name: options.get(name) for name in PATHS}
    named["stats_file"] = (options.get("normalize_conf") or {}).get("stats_file")
    named = {name: path for name, path in named.items() if path}
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
        f"{config} names files that are not there (looked for from {Path.cwd()} and "
        f"from the directories above it): {', '.join(missing or map(str, named))}"
    )


def find_models(root: Union[str, Path] = ".") -> List[LocalModel]:
    """List the models on this machine.

    Args:
        root: Experiments and packs are looked for in its `exp` and `egs2/*/dus1/exp`;
            models that were fetched once, in their cache.

    Returns:
        Experiments with a checkpoint, then packs, then fetched models.
    """
    found: List[LocalModel] = []
    root = Path(root)
    for pattern in WHERE:
        for config in sorted(root.glob(f"{pattern}/*/config.yaml")):
            found += _experiment(config)
    for pattern in WHERE:
        for archive in sorted(root.glob(f"{pattern}/**/*.zip")):
            found += _pack(archive)
    names = {os.path.abspath(model.name) for model in found}
    return found + [model for model in _fetched() if model.name not in names]


def _experiment(config: Path) -> Iterator[LocalModel]:
    try:
        experiment_files(config.parent)
    except ValueError:  # not trained yet
        return
    params = config.with_name("params.json")
    counts = json.loads(params.read_text("utf-8")) if params.is_file() else {}
    name = (counts.get("base_lm") or {}).get("name")
    yield from _model(str(config.parent), config.read_text("utf-8"), name, counts)


def _pack(archive: Path) -> Iterator[LocalModel]:
    if not zipfile.is_zipfile(archive):
        return
    with zipfile.ZipFile(archive) as members:
        if "meta.yaml" not in members.namelist():
            return
        meta = yaml.safe_load(members.read("meta.yaml"))
        config = members.read(meta["yaml_files"]["asr_train_config"]).decode("utf-8")
    yield from _model(str(archive), config, meta["base_lm"]["name"])


def _fetched() -> Iterator[LocalModel]:
    """Give the models fetched before, by what they were fetched by."""
    for path in sorted((default_cache() / "models").glob(f"*/{TAG}")):
        identity = json.loads(path.with_name("base_lm").joinpath(IDENTITY).read_text())
        config = path.with_name("config.yaml").read_text("utf-8")
        yield from _model(path.read_text("utf-8"), config, identity["name"])


def _model(
    name: str,
    config: str,
    base_lm: Optional[str],
    counts: Optional[Dict[str, Any]] = None,
) -> Iterator[LocalModel]:
    """Describe a model by its configuration; nothing, if it is not one of ours."""
    options = yaml.safe_load(config)
    if not isinstance(options, dict) or not {"adaptation", "base_lm"} <= set(options):
        return
    what = options["adaptation"]
    if what == "dus":
        conf = options.get("adaptation_conf") or {}
        kind, scope = conf.get("kind", "e_branchformer"), conf.get("scope", "speech")
        what = f"dus {kind} {scope}"
    base_lm = base_lm or os.path.basename(str(options["base_lm"]))
    yield LocalModel(name, what, base_lm, (counts or {}).get("trained"))
