"""The arms: ways to adapt the base LM that differ only in what is trained."""

from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Sequence, Union

import torch
from espnet2.utils.get_default_kwargs import get_default_kwargs

from espnet_dus.io import check_names
from espnet_dus.model.placement import parse_positions
from espnet_dus.model.upscaled_lm import AddedLayer, dropped, is_dropped, mix_in
from espnet_dus.model.upscaling import upscale

MATCH_ADDED_LAYERS = "match_added_layers"


def adapt(lm: torch.nn.Module, arm: str, **conf: Any) -> torch.nn.Module:
    """Make the parameters that an arm trains trainable, and only those.

    Args:
        lm: A loaded base LM. It is changed in place.
        arm: `dus`, `lora`, `full` or `frozen`.
        conf: The arm's options.

    Returns:
        `lm`.

    Raises:
        ValueError: The arm or an option of it is unknown, or does not fit.
    """
    if arm not in ARMS:
        raise ValueError(f"adaptation: {arm!r} is not one of {', '.join(ARMS)}")
    if arm != "dus":  # whose options depend on the kind: checked there
        check_names(f"adaptation {arm}", conf, get_default_kwargs(ARMS[arm]))
    return ARMS[arm](lm, **conf)


def frozen(lm: torch.nn.Module) -> torch.nn.Module:
    """Train nothing of the LM: only the speech embedder in front of it learns."""
    return lm.requires_grad_(False)


def full(lm: torch.nn.Module) -> torch.nn.Module:
    """Train all of the LM, in float32."""
    return lm.float().requires_grad_(True)


def lora(
    lm: torch.nn.Module,
    *,
    rank: Union[int, str] = 16,
    alpha: Optional[float] = None,
    dropout: float = 0.0,
    target_modules: Union[str, Sequence[str]] = "all-linear",
) -> torch.nn.Module:
    """Train low-rank updates (PEFT's LoRA) of the LM's linear layers.

    Args:
        lm: The base LM.
        rank: Rank of the updates. `match_added_layers`: the largest rank with no more
            parameters than the added layers of arm `dus` in the paper's setting, copies
            of 25 % of the base layers: 144 for SmolLM2-360M, 356 for SmolLM2-1.7B.
        alpha: The updates are scaled by `alpha / rank`. None: twice the rank, a scale
            of 2 at every rank.
        dropout: Dropout on the input of the updates.
        target_modules: PEFT's: names, a regular expression, or `all-linear` (all but
            the LM head).

    Raises:
        ValueError: `rank` is not a number from 1 on or `match_added_layers`, or a
            target matches no layer.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    def inject(model: torch.nn.Module, r: int) -> torch.nn.Module:
        config = LoraConfig(
            r=r,
            lora_alpha=2 * r if alpha is None else alpha,
            lora_dropout=dropout,
            target_modules=target_modules,
            task_type="CAUSAL_LM",
        )
        # PEFT would make the updates on the CPU first, whatever device the model is on
        with model.device:
            return inject_adapter_in_model(config, model)

    lm.requires_grad_(False)
    if rank == MATCH_ADDED_LAYERS:
        base_layers = lm.model.layers
        wanted = len(parse_positions("interleaved", len(base_layers))) * sum(
            p.numel() for p in base_layers[0].parameters()
        )
        # parameters grow linearly with the rank: count those of rank 1
        with torch.device("meta"):
            trial = inject(type(lm)(lm.config), 1)
        per_rank = sum(p.numel() for n, p in trial.named_parameters() if "lora_" in n)
        rank = max(1, wanted // per_rank)
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(
            f"adaptation_conf: rank {rank}: expected a number of 1 or more, or "
            f"{MATCH_ADDED_LAYERS}"
        )
    lm = inject(lm, rank)
    updated = {name for name, _ in lm.named_parameters() if "lora_" in name}
    for target in [] if isinstance(target_modules, str) else target_modules:
        if not any(f".{target}.lora_" in name for name in updated):
            raise ValueError(
                f"adaptation_conf: target_modules: {target!r} matches no linear layer"
            )
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    for module in lm.modules():
        if isinstance(module, BaseTunerLayer):
            mix_in(LowRankUpdate, module)
    return lm


class LowRankUpdate:
    """A LoRA layer that can be dropped in one thread while others use it."""

    @property
    def disable_adapters(self) -> bool:
        """Whether PEFT's forward leaves the update out."""
        return self._disable_adapters or is_dropped(self)


ARMS = {"dus": upscale, "lora": lora, "full": full, "frozen": frozen}


@contextmanager
def drop_added_layers(lm: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Run an adapted LM as the base LM inside it, without loading that again.

    Within the block the added layers (`dus`) or the low-rank updates (`lora`) are left
    out of every pass of the current thread or asynchronous task, so that logits and
    generated text are the base LM's, bit for bit. Other threads are not affected.

    Args:
        lm: An adapted LM of any arm but `full`.

    Yields:
        `lm`.

    Raises:
        ValueError: Full fine-tuning has overwritten the base LM.

    Examples:
        >>> with drop_added_layers(lm):
        ...     ids = lm.generate(**tokenizer("What is 2 + 2?", return_tensors="pt"))
    """
    if not has_base_lm(lm):
        raise ValueError(
            "full fine-tuning has overwritten the base LM: load it by itself"
        )
    with dropped(_added(lm)):
        yield lm


def has_base_lm(lm: torch.nn.Module) -> bool:
    """Return whether the base LM is inside an adapted one: not in arm `full`."""
    return bool(_added(lm)) or not any(p.requires_grad for p in lm.parameters())


def _added(lm: torch.nn.Module) -> List[torch.nn.Module]:
    return [m for m in lm.modules() if isinstance(m, (AddedLayer, LowRankUpdate))]
