"""Checkpoints hold what the arm trains and the identity of its base LM.

ESPnet's Trainer, averaging, `--init_param` and packing all go through `state_dict` and
`load_state_dict`, so hooks on these two serve them all.
"""

import json
import pickle
import re
from dataclasses import asdict
from pathlib import Path
from typing import Callable, Dict, Optional, Set, Union

import torch
from espnet2.torch_utils.load_pretrained_model import safe_torch_load

from espnet_dus.io import tensors_sha256
from espnet_dus.model.base_lm import Identity
from espnet_dus.model.features import pretrained_parts
from espnet_dus.model.layers.hybrid import FORMER_LAYER

IDENTITY_KEY = "base_lm_identity"
FORMER_HYBRID = r"\.layers\.\d+\.layer\.cgmlp\."  # keys of the layer it replaces


def keep_only_trained(model: torch.nn.Module, identity: Identity) -> None:
    """Make a model save and load without its frozen base LM and frontend.

    Args:
        model: The ESPnet model, its trainable parameters chosen. Changed in place.
        identity: Of the base LM.
    """
    left_out = _not_saved(model)

    def drop_frozen(module, state, prefix, _):
        for name in left_out:
            state.pop(prefix + name, None)

    def check_identity(saved: Dict[str, str]) -> None:
        found = Identity(**saved)
        if found.sha256 != identity.sha256:
            raise RuntimeError(
                f"this checkpoint was trained on the base LM {_describe(found)}, but "
                f"the one loaded is {_describe(identity)}: name the former (--base_lm)"
            )

    def check_keys(module, keys):
        keys.missing_keys[:] = [k for k in keys.missing_keys if k not in left_out]
        problems = [
            f"{len(found)} {what} ({', '.join(found[:5])}{', ...' * (len(found) > 5)})"
            for what, found in (
                ("keys missing", keys.missing_keys),
                ("keys that this model does not have", keys.unexpected_keys),
            )
            if found
        ]
        if any(re.search(FORMER_HYBRID, key) for key in keys.unexpected_keys):
            problems.append(FORMER_LAYER)
        if problems:
            raise RuntimeError(
                f"the checkpoint does not fit the model: {'; '.join(problems)}. Was it "
                "trained with another configuration (adaptation, CTC, embedder)?"
            )

    record_identity(model, IDENTITY_KEY, asdict(identity), check_identity)
    model.register_state_dict_post_hook(drop_frozen)
    model.register_load_state_dict_post_hook(check_keys)


def record_identity(
    module: torch.nn.Module,
    key: str,
    identity: Dict[str, str],
    check: Callable[[Dict[str, str]], None],
) -> None:
    """Save an identity with a module, and check it when a checkpoint is loaded.

    It goes into the state dict as a float tensor of UTF-8 bytes: ESPnet adds and
    divides every tensor when it averages checkpoints, which leaves equal floats as they
    are.

    Args:
        module: Gets a buffer.
        key: Name of the buffer.
        identity: What to record.
        check: Raises an error if the identity of a checkpoint is another one.
    """
    code = json.dumps(identity).encode()
    module.register_buffer(key, torch.tensor(list(code), dtype=torch.float32))

    def check_saved(module, state, prefix, *_):
        saved = state.get(prefix + key)
        if saved is None:
            return  # reported as a missing key
        check(json.loads(bytes(saved.to(torch.uint8).tolist())))
        state[prefix + key] = getattr(module, key)

    module.register_load_state_dict_pre_hook(check_saved)


def checkpoint_identity(path: Union[str, Path]) -> Identity:
    """Read the identity of a checkpoint's base LM; no code in the file is run.

    Memory-mapped: of a checkpoint that holds a whole LM, only the identity is read.

    Raises:
        ValueError: The file is missing, damaged, holds more than tensors, or is not a
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


def checkpoint_sha256(path: Union[str, Path]) -> str:
    """Return the sha256 over a checkpoint's tensors.

    That of the file depends on the temporary name under which it was saved, too.
    """
    state = safe_torch_load(path, map_location="cpu", mmap=True)
    return tensors_sha256(sorted(state.items()))


def parameter_counts(model: torch.nn.Module) -> Dict[str, int]:
    """Count parameters, tied ones once.

    Returns:
        `trained`, `frozen` and `total`.
    """
    counts = {"trained": 0, "frozen": 0, "total": 0}
    for parameter in model.parameters():
        counts["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
        counts["total"] += parameter.numel()
    return counts


def count_as_paper(model: torch.nn.Module) -> Optional[int]:
    """Count trained parameters as the paper does.

    The paper counts input and output embeddings separately and whole, each with the
    rows of text and of speech tokens. Ours are tied, and only the new rows of the input
    are trained.

    Args:
        model: The ESPnet model.

    Returns:
        The number of parameters; None without speech tokens.
    """
    vocab_sizes = getattr(model.speech_embedder, "vocab_sizes", None)
    if vocab_sizes is None:
        return None
    lm = model.lm
    embed, head = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
    others = [p for p in lm.parameters() if p is not embed and p is not head]
    num_text, hidden = embed.shape
    tables = 2 * (num_text + sum(vocab_sizes)) * hidden
    return tables + sum(p.numel() for p in others if p.requires_grad)


def _not_saved(model: torch.nn.Module) -> Set[str]:
    lm = model.lm
    frozen = {n for n, p in lm.named_parameters() if not p.requires_grad}
    unique = {name for name, _ in lm.named_parameters()}
    tied = {n for n, _ in lm.named_parameters(remove_duplicate=False)} - unique
    left_out = {f"lm.{name}" for name in frozen | tied}
    for part, module in pretrained_parts(model.frontend).items():
        if not any(p.requires_grad for p in module.parameters()):
            left_out |= {f"frontend.{part}.{key}" for key in module.state_dict()}
    return left_out


def _describe(identity: Identity) -> str:
    revision = f" revision {identity.revision}" if identity.revision else ""
    return f"{identity.name}{revision} (sha256 {identity.sha256[:12]})"


def check_init_param(init_param: str, model: torch.nn.Module) -> None:
    """Check that each name in a value of `--init_param` matches something.

    Where one does not, ESPnet silently copies nothing.

    Args:
        init_param: `path[:source[:destination[:excluded,...]]]`.
        model: The model that takes the parameters over.

    Raises:
        ValueError: The source or an excluded name matches no parameter of the file, or
            the destination is not a part of the model.
    """
    path, source, destination, excluded = (*init_param.split(":"), "", "", "")[:4]
    names = safe_torch_load(path, map_location="cpu").keys()
    for prefix in [source, *excluded.split(",")]:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(f"init_param: {prefix!r} matches no parameter of {path}")
    parts = {name for name, _ in (*model.named_modules(), *model.named_parameters())}
    if destination not in parts:
        raise ValueError(f"init_param: {destination!r} is not a part of the model")
