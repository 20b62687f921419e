"""The arms: four ways to adapt the base LM, alike in everything but what is trained."""

import inspect
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, Optional, Sequence, Union

import torch

from espnet_dus.model.upscaling import only_base_layers, upscale

ARMS: Dict[str, Callable]


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
        options = list(inspect.signature(ARMS[arm]).parameters)[1:]
        if unknown := sorted(set(conf) - set(options)):
            raise ValueError(
                f"unknown option(s) of adaptation {arm!r}: {', '.join(unknown)}; it "
                f"takes {', '.join(options) or 'none'}"
            )
    return ARMS[arm](lm, **conf)


def frozen(lm: torch.nn.Module) -> torch.nn.Module:
    """Train nothing of the LM: only the speech embedder in front of it learns."""
    return lm.requires_grad_(False)


def full(lm: torch.nn.Module) -> torch.nn.Module:
    """Train all of the LM, in float32."""
    return lm.float().requires_grad_(True)


def lora(
    lm: torch.nn.Module,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    target_modules: Union[str, Sequence[str]] = "all-linear",
    match_parameters: Optional[int] = None,
) -> torch.nn.Module:
    """Train low-rank updates (PEFT's LoRA) of the LM's linear layers.

    Args:
        lm: The base LM.
        rank: Rank of the updates.
        alpha: Their scale, as `alpha / rank`.
        dropout: Of what enters them.
        target_modules: PEFT's: names, a regular expression, or `all-linear` (all but
            the LM head).
        match_parameters: Take the rank whose number of trained parameters is nearest to
            this number (that of another arm), and scale alpha with it, instead of
            `rank`.

    Raises:
        ValueError: `rank` is below 1.
    """
    if rank < 1:
        raise ValueError(f"adaptation_conf: rank {rank}: expected at least 1")
    from peft import LoraConfig, inject_adapter_in_model

    def config(r: int) -> LoraConfig:
        return LoraConfig(
            r=r,
            lora_alpha=alpha * r / rank,
            lora_dropout=dropout,
            target_modules=target_modules,
            task_type="CAUSAL_LM",
        )

    def inject(model: torch.nn.Module, r: int) -> torch.nn.Module:
        # PEFT would make the updates on the CPU first, whatever device the model is on
        with model.device:
            return inject_adapter_in_model(config(r), model)

    lm.requires_grad_(False)
    matched = rank
    if match_parameters is not None:
        # parameters grow linearly with the rank: count those of rank 1
        with torch.device("meta"):
            trial = inject(type(lm)(lm.config), 1)
        per_rank = sum(p.numel() for n, p in trial.named_parameters() if "lora_" in n)
        matched = max(1, round(match_parameters / per_rank))
    lm = inject(lm, matched)
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return lm


ARMS = {"dus": upscale, "lora": lora, "full": full, "frozen": frozen}


@contextmanager
def unadapted(lm: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Run the base LM that stands inside an adapted one.

    Within the block the inserted layers are taken out, low-rank updates are off: what
    is left is the base LM, without loading it again.

    Args:
        lm: An adapted LM of any arm but `full`.

    Yields:
        `lm`.

    Raises:
        ValueError: Full fine-tuning has overwritten the base LM.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    updates = [m for m in lm.modules() if isinstance(m, BaseTunerLayer)]
    with ExitStack() as stack:
        stack.enter_context(only_base_layers(lm))
        own = [p for n, p in lm.named_parameters() if "lora_" not in n]
        if any(p.requires_grad for p in own):
            raise ValueError(
                "full fine-tuning has overwritten the base LM: load it by itself"
            )
        for update in updates:
            update.enable_adapters(False)
            stack.callback(update.enable_adapters, True)
        yield lm
