"""What a checkpoint holds: what the arm trains, and which base LM it belongs to.

ESPnet's Trainer, averaging, `--init_param` and packing all go through `state_dict` and
`load_state_dict`, so hooks on these two serve them all.
"""

import json
import re
from dataclasses import asdict
from typing import Dict, Set

import torch

from espnet_dus.model.base_lm import Identity
from espnet_dus.model.layers.hybrid import FORMER_LAYER

IDENTITY_KEY = "base_lm_identity"
FORMER_HYBRID = r"\.layers\.\d+\.layer\.cgmlp\."  # keys of the layer it replaces


def keep_only_trained(model: torch.nn.Module, lm_name: str, identity: Identity) -> None:
    """Make a model save and load without the frozen base LM.

    The identity goes into the state dict as a float tensor of UTF-8 bytes: ESPnet adds
    and divides every tensor when it averages checkpoints, which leaves equal floats as
    they are.

    Args:
        model: The ESPnet model, its trainable parameters chosen. Changed in place.
        lm_name: The attribute that holds the LM.
        identity: Of the base LM.
    """
    code = json.dumps(asdict(identity)).encode()
    model.register_buffer(
        IDENTITY_KEY, torch.tensor(list(code), dtype=torch.float32), persistent=True
    )
    left_out = _not_saved(model, lm_name)

    def drop_frozen(module, state, prefix, _):
        for name in left_out:
            state.pop(prefix + name, None)

    def check_identity(module, state, prefix, *_):
        saved = state.get(prefix + IDENTITY_KEY)
        if saved is None:
            return  # reported as a missing key, below
        saved = Identity(**json.loads(bytes(saved.to(torch.uint8).tolist())))
        if saved.sha256 != identity.sha256:
            raise RuntimeError(
                f"this checkpoint was trained on the base LM {_describe(saved)}, but "
                f"the one loaded is {_describe(identity)}: give the former (--base_lm)"
            )
        state[prefix + IDENTITY_KEY] = getattr(module, IDENTITY_KEY)

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

    model.register_state_dict_post_hook(drop_frozen)
    model.register_load_state_dict_pre_hook(check_identity)
    model.register_load_state_dict_post_hook(check_keys)


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


def _not_saved(model: torch.nn.Module, lm_name: str) -> Set[str]:
    lm = getattr(model, lm_name)
    frozen = {n for n, p in lm.named_parameters() if not p.requires_grad}
    unique = {name for name, _ in lm.named_parameters()}
    tied = {n for n, _ in lm.named_parameters(remove_duplicate=False)} - unique
    return {f"{lm_name}.{name}" for name in frozen | tied}


def _describe(identity: Identity) -> str:
    revision = f" revision {identity.revision}" if identity.revision else ""
    return f"{identity.name}{revision} (sha256 {identity.sha256[:12]})"
