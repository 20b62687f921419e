"""Scope `all`: a loss that limits how far the added layers change text.

Trained on speech alone, layers that act on every position also change text. On text,
the residual stream is compared with the base LM's,

    drift = mean over positions of |adapted - base|^2 / |base|^2

above the last added layer, with |base| clamped from below at its median. All layers
that follow are the frozen base LM's, so where the drift is zero, the logits are the
base LM's. This is the feature distillation of Romero et al. (arXiv 1412.6550), from the
model inside the model.

No corpus is needed. Half of the text is written by the base LM itself, from a random
first token on (as in LLM-QAT, Liu et al., arXiv 2305.17888); the other half is random
tokens, for the words that it does not write.

Dimensions: N sequences, T positions, D hidden.
"""

import logging
import time
from typing import Optional

import torch

from espnet_dus.model.upscaling import inserted_layers, stack


def text_drift(lm: torch.nn.Module, ids_NT: torch.Tensor) -> torch.Tensor:
    """Measure how far the added layers move text in the residual stream.

    Args:
        lm: An up-scaled LM.
        ids_NT: Token ids (N, T), without padding.

    Returns:
        The drift, a scalar; 0 where the added layers change nothing.
    """
    lower = stack(lm, 0, max(inserted_layers(lm)) + 1, norm=False)
    adapted_NTD = lower(ids_NT).last_hidden_state
    with torch.no_grad():
        base_NTD = lower(ids_NT, added_layers="dropped").last_hidden_state
    moved_NT = (adapted_NTD.float() - base_NTD.float()).square().sum(-1)
    base_NT = base_NTD.float().square().sum(-1)
    # the median, since some embeddings are zero and some positions enormous
    return (moved_NT / base_NT.clamp(min=base_NT.median())).mean()


class TextRetention:
    """The drift on a few sequences of text, others in each call.

    Args:
        num_written: Number of sequences that the base LM writes, once, at the first
            call; the same ones for the same base LM.
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
        """Return the drift, a scalar, of an up-scaled LM."""
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
    """Generate text with the base LM in an up-scaled LM.

    The random state is left as it was, so that a resumed training continues exactly as
    it would have without interruption.

    Args:
        lm: An up-scaled LM.
        num_sequences: Number of texts.
        num_tokens: Length of each; the first token is any of the vocabulary.
        batch_size: Number of texts written at a time.

    Returns:
        Token ids (num_sequences, num_tokens).
    """
    begin = time.perf_counter()
    training = {module: module.training for module in lm.modules()}
    lm.eval()
    devices = [lm.device] if lm.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            first_N1 = torch.randint(
                lm.config.vocab_size, (num_sequences, 1), device=lm.device
            )
            written = [
                lm.generate(
                    first_B1,
                    attention_mask=torch.ones_like(first_B1),
                    added_layers="dropped",
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
