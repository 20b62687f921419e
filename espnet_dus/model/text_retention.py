"""Scope `all`: a loss that keeps text as the base LM has it.

Layers that see every position have no reason to leave text alone while they learn from
speech. On text, what they make of the residual stream is compared to what the base LM
has there,

    drift = mean over positions of |adapted - base|^2 / |base|^2

just above the last inserted layer, a |base| below the median counting as that. All that
follows is the frozen base LM, so where the drift is nothing, the logits are the base
LM's. This is the feature distillation of Romero et al. (arXiv 1412.6550), from the
model inside the model.

No corpus is asked for: half of the text is what the base LM writes by itself, from a
random first token on (as in LLM-QAT, Liu et al., arXiv 2305.17888), half random tokens,
for the words that it does not write.

Dimensions: N sequences, T positions, D hidden.
"""

import logging
import time
from typing import Optional

import torch

from espnet_dus.model.upscaling import inserted_layers, layer_output, only_base_layers


def text_drift(lm: torch.nn.Module, ids_NT: torch.Tensor) -> torch.Tensor:
    """Measure how far the inserted layers move text in the residual stream.

    Args:
        lm: An up-scaled LM.
        ids_NT: Token ids (N, T), without padding.

    Returns:
        The drift, a scalar; 0 where the inserted layers let text pass.
    """
    inserted = inserted_layers(lm)
    last = max(inserted)
    with layer_output(lm, last, end=True) as adapted:
        lm.model(input_ids=ids_NT, use_cache=False)
    below = last - len(inserted)  # the base layer under it; -1: the embeddings
    with torch.no_grad(), only_base_layers(lm):
        base_NTD = lm.get_input_embeddings()(ids_NT)
        if below >= 0:
            with layer_output(lm, below, end=True) as base:
                lm.model(input_ids=ids_NT, use_cache=False)
            base_NTD = base["hidden"]
    moved_NT = (adapted["hidden"].float() - base_NTD.float()).square().sum(-1)
    base_NT = base_NTD.float().square().sum(-1)
    # the median, since some embeddings are zero and some positions enormous
    return (moved_NT / base_NT.clamp(min=base_NT.median())).mean()


class TextRetention:
    """The drift on a few sequences of text, others in each call.

    Args:
        num_written: Sequences that the base LM writes, once, when first needed; the
            same ones for the same base LM.
        num_tokens: Length of a sequence.
        batch_size: Sequences of a call, half of them random tokens.
    """

    def __init__(
        self, num_written: int = 512, num_tokens: int = 64, batch_size: int = 4
    ):
        self.num_written = num_written
        self.num_tokens = num_tokens
        self.batch_size = batch_size
        self.written: Optional[torch.Tensor] = None

    def __call__(self, lm: torch.nn.Module) -> torch.Tensor:
        """Give the drift, a scalar, of an up-scaled LM."""
        return text_drift(lm, self.text(lm))

    def text(self, lm: torch.nn.Module) -> torch.Tensor:
        """Draw token ids (batch_size, num_tokens)."""
        if self.written is None:
            self.written = write_text(lm, self.num_written, self.num_tokens)
        half = self.batch_size // 2
        rows = torch.randint(self.num_written, (half,), device=lm.device)
        size = (self.batch_size - half, self.num_tokens)
        random_NT = torch.randint(lm.config.vocab_size, size, device=lm.device)
        return torch.cat([self.written[rows], random_NT])


@torch.no_grad()
def write_text(
    lm: torch.nn.Module, num_sequences: int, num_tokens: int, batch_size: int = 128
) -> torch.Tensor:
    """Let the base LM in an up-scaled LM write.

    Random numbers are drawn aside: a training that is resumed goes on as it would have.

    Args:
        lm: An up-scaled LM.
        num_sequences: How many.
        num_tokens: Length of each; the first token is any of the vocabulary.
        batch_size: Sequences that are written at a time.

    Returns:
        Token ids (num_sequences, num_tokens).
    """
    begin = time.perf_counter()
    training = {module: module.training for module in lm.modules()}
    lm.eval()
    devices = [lm.device] if lm.device.type == "cuda" else []
    try:
        with only_base_layers(lm), torch.random.fork_rng(devices):
            torch.manual_seed(0)
            first_N1 = torch.randint(
                lm.config.vocab_size, (num_sequences, 1), device=lm.device
            )
            written = [
                lm.generate(
                    first_B1,
                    attention_mask=torch.ones_like(first_B1),
                    do_sample=True,
                    top_k=0,
                    max_new_tokens=num_tokens - 1,
                    min_new_tokens=num_tokens - 1,
                )
                for first_B1 in first_N1.split(batch_size)
            ]
    finally:
        for module, mode in training.items():
            module.training = mode
    logging.info(
        f"text retention: the base LM has written {num_sequences} texts of "
        f"{num_tokens} tokens in {time.perf_counter() - begin:.0f} s"
    )
    return torch.cat(written)
