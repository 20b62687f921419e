"""Perplexity of a causal LM on a text file, and a second LM's distance from it.

A file is one stream of tokens from its first to its last line, headings and blank
lines included, as is usual for WikiText's perplexity. It is cut into windows; each
token except the first is predicted exactly once. The last window reaches back to have
its full context.
"""

from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Union

import numpy as np
import torch

from espnet_dus.evaluation.text.metric import Metric, spread
from espnet_dus.io import progress

WINDOW = 1024


class Window(NamedTuple):
    """Inputs are tokens[start:stop]; the last `scored` of their successors count."""

    start: int
    stop: int
    scored: int


def windows(num_tokens: int, window: int) -> List[Window]:
    """Cut a stream of at least 2 tokens into windows with contexts up to `window`."""
    last = num_tokens - 1
    stops = [min(done + window, last) for done in range(0, last, window)]
    return [
        Window(max(0, stop - window), stop, stop - n * window)
        for n, stop in enumerate(stops)
    ]


def read_text(path: Union[str, Path]) -> str:
    """Read a text file.

    Raises:
        ValueError: It is missing, not UTF-8, or holds no words.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such text file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error
    if len(text.split()) < 2:
        raise ValueError(f"{path}: fewer than two words, nothing to predict")
    return text


def score_text(
    text: str,
    tokenizer,
    base: torch.nn.Module,
    adapted: Optional[torch.nn.Module] = None,
    window: int = WINDOW,
    limit: Optional[int] = None,
) -> Dict[str, Dict[str, Metric]]:
    """Predict a text with one LM, or with two at once.

    Args:
        text: The text, taken as one stream.
        tokenizer: HF tokenizer; no special tokens are added.
        base: HF causal LM.
        adapted: A second one with the same vocabulary.
        window: Longest context in tokens.
        limit: At most this many windows, at even distances.

    Returns:
        Perplexities of `base` and `adapted`, by token and by white-space word, and
        `kl`: KL(base || adapted) per token in nats. A window is an item: tokens of one
        window depend on each other too much to count as items.

    Raises:
        ValueError: The text is a single token.
    """
    tokens = torch.tensor(
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    )
    if len(tokens) < 2:
        raise ValueError("the text is a single token, nothing to predict")
    cut = windows(len(tokens), window)
    chosen = [cut[index] for index in spread(len(cut), limit)]
    nats: Dict[str, List[float]] = {"base": [], "adapted": [], "kl": []}
    for start, stop, scored in progress(chosen, "perplexity", "windows"):
        inputs, targets = tokens[start:stop], tokens[stop - scored + 1 : stop + 1]
        log_p = _log_probs(base, inputs, scored)
        targets = targets[:, None].to(log_p.device)
        nats["base"].append(-_sum(log_p.gather(1, targets)))
        if adapted is not None:
            log_q = _log_probs(adapted, inputs, scored)
            nats["adapted"].append(-_sum(log_q.gather(1, targets)))
            nats["kl"].append(_sum((log_p.exp() * (log_p - log_q)).sum(dim=-1)))
    num_tokens = np.array([scored for _, _, scored in chosen])
    num_words = num_tokens * (len(text.split()) / (len(tokens) - 1))
    part = {
        model: {
            name: Metric("perplexity", np.stack([nats[model], weights], 1))
            for name, weights in (
                ("token_perplexity", num_tokens),
                ("word_perplexity", num_words),
            )
        }
        for model in ("base", "adapted")
        if nats[model]
    }
    if nats["kl"]:
        kl = Metric("mean", np.stack([nats["kl"], num_tokens], 1))
        part["kl"] = {"kl_per_token": kl}
    return part


def _sum(values: torch.Tensor) -> float:
    return float(values.flatten().cpu().numpy().sum(dtype=float))


@torch.inference_mode()
def _log_probs(lm: torch.nn.Module, inputs: torch.Tensor, scored: int) -> torch.Tensor:
    """Log probabilities of all tokens after the last `scored` inputs, (scored, V)."""
    device = next(lm.parameters()).device
    logits = lm(input_ids=inputs[None].to(device), use_cache=False).logits
    return logits[0, -scored:].float().log_softmax(dim=-1)
