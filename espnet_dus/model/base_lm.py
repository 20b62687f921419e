"""Loading the base LM and identifying it by its weights.

A base LM is a Hugging Face directory with its weights as safetensors. `load_base_lm`
loads it, frozen, together with its identity.
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional, Tuple, Union

import torch

from espnet_dus.io import tensors_sha256

IDENTITY = "identity.json"
# How transformers reads a directory: it fetches nothing, runs no code and does not ask
LOCAL_DATA = {"local_files_only": True, "trust_remote_code": False}
# Keys of `config.json` that Gemma 2, Granite and Cohere change their logits by
LOGIT_KEYS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True)
class Identity:
    """The identity of a base LM.

    Attributes:
        name: Its source: a hub id, package or directory name.
        revision: The hub revision (commit), or "" without one.
        sha256: Digest of the names, types, shapes and values of its weights, which does
            not depend on sharding or on the order in a file.
    """

    name: str
    revision: str
    sha256: str


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

    def load(name: str) -> torch.Tensor:
        with safe_open(places[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    return tensors_sha256((name, load(name)) for name in sorted(places))


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
    check_config(directory)
    identity = identify(directory)
    with quiet_progress():
        lm = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=resolve_dtype(dtype),
            attn_implementation=attn_implementation,
            **LOCAL_DATA,
        )
    tokenizer = AutoTokenizer.from_pretrained(directory, **LOCAL_DATA)
    check_tokenizer(tokenizer, lm, directory)
    return lm.requires_grad_(False).eval(), tokenizer, identity


def check_tokenizer(tokenizer, lm: torch.nn.Module, directory: Path) -> None:
    """Check that every token has an embedding.

    Raises:
        ValueError: The tokenizer has tokens beyond the embedding's rows.
    """
    rows = lm.get_input_embeddings().num_embeddings
    beyond = [token for token, i in tokenizer.get_vocab().items() if i >= rows]
    if beyond:
        raise ValueError(
            f"{directory}: {len(beyond)} of the tokenizer's {len(tokenizer)} tokens "
            f"have no row in the embedding, which has {rows}: {sorted(beyond)[:5]}. "
            "Take the tokenizer that belongs to the model, or resize and save the "
            "model (resize_token_embeddings)"
        )


def embedding_rms(lm: torch.nn.Module) -> float:
    """Return the root mean square of an LM's token embeddings, the scale it reads.

    It is that of the module's output, since Gemma's module scales its table.
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


def check_config(directory: Path) -> None:
    """Check that a directory holds a causal LM that can be a base LM.

    Raises:
        ValueError: It does not.
    """
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
                "after the LM head is not supported"
            )
    if not any(directory.glob("tokenizer*")):
        raise ValueError(f"{directory}: no tokenizer (tokenizer.json) beside the model")


def plain_config(lm: torch.nn.Module, *left_out: str) -> Any:
    """Return an LM's configuration without the entries named, precision and path."""
    options = lm.config.to_dict()
    for name in (*left_out, "dtype", "_name_or_path"):
        options.pop(name, None)
    return type(lm.config)(**options)


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Keep transformers' bars for loads of a second out of the log files."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.enable_progress_bar()
