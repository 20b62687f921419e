"""One representation of every text metric, so that models are compared by item."""

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

KINDS = ("mean", "perplexity")


@dataclass(frozen=True)
class Metric:
    """A metric as the contribution of each item.

    The ratio of the summed values to the summed weights is the score of kind `mean`
    (an accuracy has values 0 or 1 and weights 1); its exponential is the score of kind
    `perplexity` (values are negative log probabilities in nats, weights are tokens or
    words).

    Attributes:
        kind: "mean" or "perplexity".
        items: Value and weight of each item, shape (items, 2).
    """

    kind: str
    items: np.ndarray

    def __post_init__(self):
        """Check the kind, and make an array of the items."""
        if self.kind not in KINDS:
            raise ValueError(f"metric kind {self.kind!r} is not one of {KINDS}")
        object.__setattr__(self, "items", np.asarray(self.items, dtype=float))

    @property
    def score(self) -> float:
        """The metric over all items."""
        value, weight = self.items.sum(axis=0)
        return float(
            np.exp(value / weight) if self.kind == "perplexity" else value / weight
        )

    def residuals(self) -> np.ndarray:
        """Return each item's share in the score's error, to first order, (items,)."""
        value, weight = self.items.sum(axis=0)
        ratio = value / weight
        slope = np.exp(ratio) if self.kind == "perplexity" else 1.0
        values, weights = self.items.T
        return slope * (values - ratio * weights) / weights.mean()

    def to_json(self) -> Dict:
        """Return the content that `from_json` reads, and the score for readers."""
        return {"kind": self.kind, "score": self.score, "items": self.items.tolist()}

    @classmethod
    def from_json(cls, stored: Dict) -> "Metric":
        """Restore a metric from the result of `to_json`."""
        return cls(stored["kind"], stored["items"])


def paired_delta(base: Metric, adapted: Metric) -> Dict[str, float]:
    """Compare two models on the same items.

    Args:
        base: The metric of the untouched base LM.
        adapted: The same metric of the adapted LM.

    Returns:
        `base`, `adapted`, `delta` (adapted minus base) and `standard_error` of the
        delta over items (None for a single item). Pairing makes it small: items that
        both models answer alike add nothing.

    Raises:
        ValueError: The two do not have the same number of items.
    """
    if len(base.items) != len(adapted.items):
        raise ValueError(
            f"{len(base.items)} items of the base LM against {len(adapted.items)} of "
            "the adapted LM: a paired comparison needs the same items"
        )
    difference = adapted.residuals() - base.residuals()
    n = len(difference)
    return {
        "base": base.score,
        "adapted": adapted.score,
        "delta": adapted.score - base.score,
        "standard_error": (
            float(difference.std(ddof=1) / np.sqrt(n)) if n > 1 else None
        ),
    }


def mean_of_independent(
    values: Sequence[float], errors: Sequence[Optional[float]]
) -> Tuple[float, Optional[float]]:
    """Return the mean of values, and its standard error; None if one is unknown."""
    error = None
    if None not in errors:
        error = float(np.sqrt(np.sum(np.square(errors))) / len(errors))
    return float(np.mean(values)), error


def spread(total: int, limit: Optional[int] = None) -> List[int]:
    """Choose `limit` of `total` items at even distances.

    In a sorted file (by paradigm, by article) the first items would not represent all.

    Args:
        total: Number of items.
        limit: Number of items to choose; None: all.

    Returns:
        Their indices, ascending.
    """
    if limit is None or limit >= total:
        return list(range(total))
    return [index * total // limit for index in range(limit)]
