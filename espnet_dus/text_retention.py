"""Scope `all`: a loss that keeps text as the base LM has it.

Layers that see every position have no reason to leave text alone while they learn from
speech. Text need not be at hand to give them one: on random tokens, what the inserted
layers make of the residual stream is compared to what the base LM has there,

    drift = mean over positions of |adapted - base|^2 / |base|^2

just above the last inserted layer, a |base| below the median counting as that. All that follows is the frozen base LM, so where this
is nothing, the logits are the base LM's. It is the feature distillation of Romero et al.
(arXiv 1412.6550), from the model inside the model.

Dimensions: B sequences, T positions, D hidden.
"""

from contextlib import contextmanager
from typing import Dict, Iterator

import torch

from espnet_dus.upscaling import inserted_layers, only_base_layers

# Random text of a step: sequences, and tokens of each.
NUM_SEQUENCES, NUM_TOKENS = 4, 64


@contextmanager
def layer_output(
    lm: torch.nn.Module, index: int, end: bool = False
) -> Iterator[Dict[str, torch.Tensor]]:
    """Keep what a layer gives in the forward passes of the block.

    Args:
        lm: A causal LM.
        index: The layer's place in its `ModuleList`.
        end: End the pass there: the layers above cost nothing, and what the pass gives
            is not to be used.

    Yields:
        A dictionary that has the output (B, T, D) as `hidden` after a pass.
    """
    kept: Dict[str, torch.Tensor] = {}
    handle = lm.model.layers[index].register_forward_hook(
        lambda module, args, output: kept.update(hidden=output)
    )
    config = lm.model.config
    num_layers = config.num_hidden_layers
    if end:
        config.num_hidden_layers = index + 1  # HF's loop goes so far
    try:
        yield kept
    finally:
        handle.remove()
        config.num_hidden_layers = num_layers


def random_text(lm: torch.nn.Module) -> torch.Tensor:
    """Give token ids, each of the vocabulary as likely, long (B, T)."""
    return torch.randint(
        lm.config.vocab_size, (NUM_SEQUENCES, NUM_TOKENS), device=lm.device
    )


def text_drift(lm: torch.nn.Module, ids_BT: torch.Tensor) -> torch.Tensor:
    """Measure how far the inserted layers move text in the residual stream.

    Args:
        lm: An up-scaled LM.
        ids_BT: Token ids (B, T), without padding.

    Returns:
        The drift, a scalar; 0 where the inserted layers let text pass.
    """
    inserted = inserted_layers(lm)
    last = max(inserted)
    with layer_output(lm, last, end=True) as adapted:
        lm.model(input_ids=ids_BT, use_cache=False)
    below = last - len(inserted)  # the base layer under it; -1: the embeddings
    with torch.no_grad(), only_base_layers(lm):
        base_BTD = lm.get_input_embeddings()(ids_BT)
        if below >= 0:
            with layer_output(lm, below, end=True) as base:
                lm.model(input_ids=ids_BT, use_cache=False)
            base_BTD = base["hidden"]
    moved_BT = (adapted["hidden"].float() - base_BTD.float()).square().sum(-1)
    base_BT = base_BTD.float().square().sum(-1)
    # the median, since some embeddings are zero and some positions enormous
    return (moved_BT / base_BT.clamp(min=base_BT.median())).mean()
