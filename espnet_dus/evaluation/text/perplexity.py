"""Perplexity of a causal LM on a text file, and a second LM's distance from it.

A file is one stream of tokens from its first to its last line, headings and blank
lines included, as is usual for WikiText's perplexity. It is cut into windows; each
token except the first is predicted exactly once. The last window reaches back to have
its full context.
"""

from dataclasses import dataclass, field
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


@dataclass
class TextScore:
    """Log probabilities of a text's tokens in nats, an array for each window."""

    words: float  # white-space words per scored token, over the whole file
    base: List[np.ndarray] = field(default_factory=list)  # under the base LM
    # under the adapted LM, and KL(base || adapted) at each token; empty without one
    adapted: List[np.ndarray] = field(default_factory=list)
    kl: List[np.ndarray] = field(default_factory=list)

    def metrics(self, model: str) -> Dict[str, Metric]:
        """Perplexities of "base" or "adapted"; a window is an item.

        Tokens of one window depend on each other too much to count as items.
        """
        totals = [(-float(p.sum(dtype=float)), len(p)) for p in getattr(self, model)]
        return {
            "token_perplexity": Metric("perplexity", totals),
            "word_perplexity": Metric(
                "perplexity", [(value, n * self.words) for value, n in totals]
            ),
        }

    def kl_metric(self) -> Metric:
        """Mean KL(base || adapted) per token in nats; a window is an item."""
        return Metric("mean", [(float(k.sum(dtype=float)), len(k)) for k in self.kl])


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
) -> TextScore:
    """Predict a text with one LM, or with two at once.

    Args:
        text: The text, taken as one stream.
        tokenizer: HF tokenizer; no special tokens are added.
        base: HF causal LM.
        adapted: A second one with the same vocabulary.
        window: Longest context in tokens.
        limit: At most this many windows, at even distances.

    Returns:
        Log probabilities of each scored token.

    Raises:
        ValueError: The text is a single token.
    """
    tokens = torch.tensor(
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    )
    if len(tokens) < 2:
        raise ValueError("the text is a single token, nothing to predict")
    cut = windows(len(tokens), window)
    score = TextScore(words=len(text.split()) / (len(tokens) - 1))
    for index in progress(spread(len(cut), limit), "perplexity", "windows"):
        start, stop, scored = cut[index]
        inputs, targets = tokens[start:stop], tokens[stop - scored + 1 : stop + 1]
        log_p = _log_probs(base, inputs, scored)
        score.base.append(_of_targets(log_p, targets))
        if adapted is not None:
            log_q = _log_probs(adapted, inputs, scored)
            score.adapted.append(_of_targets(log_q, targets))
            kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
            score.kl.append(kl.cpu().numpy())
    return score


@torch.inference_mode()
def _log_probs(lm: torch.nn.Module, inputs: torch.Tensor, scored: int) -> torch.Tensor:
    """Log probabilities of all tokens after the last `scored` inputs, (scored, V)."""
    device = next(lm.parameters()).device
    logits = lm(input_ids=inputs[None].to(device), use_cache=False).logits
    return logits[0, -scored:].float().log_softmax(dim=-1)


def _of_targets(log_probs: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    picked = log_probs.gather(1, targets[:, None].to(log_probs.device))
    return picked[:, 0].cpu().numpy()
