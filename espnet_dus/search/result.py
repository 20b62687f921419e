"""Hypotheses: from tokens and their scores."""

import math
from typing import List, NamedTuple, Optional, Sequence, Tuple

from espnet_dus.model.espnet_model import ESPnetDUSModel


class Hypothesis(NamedTuple):
    """One result of a search.

    Attributes:
        text: The transcript.
        token: The base LM's tokens.
        token_int: Their ids.
        score: What the search ranks by: the sum of the tokens' log-probabilities, EOS
            included, and what its options add.
        confidence: The probability of each word of `text`, given the words before it,
            as the search scores tokens: the LLM's or, in a joint search, the weighted
            geometric mean of the LLM's and CTC's.
        word_times: Each word with its start and end (seconds) and confidence, or None
            where no times were asked for.
        llm_passes: Number of LLM passes, the pass over the speech included.
        guards: The guards that acted: `length`, `repetition`, `no_speech`.
    """

    text: str
    token: List[str]
    token_int: List[int]
    score: float
    confidence: List[float] = []
    word_times: Optional[List[Tuple[str, float, float, float]]] = None
    llm_passes: int = 0
    guards: List[str] = []


def hypothesis(
    model: ESPnetDUSModel,
    ids: List[int],
    token_scores: Sequence[float],
    score: float,
    llm_passes: int,
    guards: List[str],
) -> Hypothesis:
    """Make a hypothesis.

    Args:
        model: Its tokenizer is used.
        ids: Token ids, without EOS.
        token_scores: Log-probability of each token; that of EOS may follow.
        score: Score of the hypothesis.
        llm_passes: Number of LLM passes.
        guards: The guards that acted.
    """
    return Hypothesis(
        text=model.tokenizer.decode(ids, skip_special_tokens=True).strip(),
        token=model.tokenizer.convert_ids_to_tokens(ids),
        token_int=ids,
        score=score,
        confidence=word_confidences(model.tokenizer, ids, token_scores),
        llm_passes=llm_passes,
        guards=guards,
    )


def nothing(*guards: str) -> Hypothesis:
    """Return the hypothesis of an utterance without speech to transcribe."""
    return Hypothesis("", [], [], 0.0, guards=[*guards])


def word_confidences(
    tokenizer, ids: List[int], token_scores: Sequence[float]
) -> List[float]:
    """Return each word's probability: the product of those of its tokens.

    The space before a word and the punctuation after it belong to the word.
    """
    sums: List[float] = []
    space = 0.0  # of tokens that are only space
    for n, score in enumerate(token_scores[: len(ids)], 1):
        text = tokenizer.decode(ids[:n], skip_special_tokens=True)
        if not text or text[-1].isspace():
            space += score
            continue
        num_words = len(text.split())
        sums += [0.0] * (num_words - len(sums))
        sums[-1] += space + score
        space = 0.0
    return [math.exp(min(s, 0.0)) for s in sums]
