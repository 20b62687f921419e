"""Scores, deltas and paired standard errors of items."""

import numpy as np
import pytest

from espnet_dus.evaluation.text.metric import Metric, paired_delta, spread


def test_accuracy_is_paired_as_differences_of_items():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, 200).astype(float)
    flipped = np.where(rng.random(200) < 0.1, 1 - base, base)
    ones = np.ones(200)
    result = paired_delta(
        Metric("mean", np.stack([base, ones], 1)),
        Metric("mean", np.stack([flipped, ones], 1)),
    )
    assert result["delta"] == pytest.approx(flipped.mean() - base.mean())
    expected = (flipped - base).std(ddof=1) / np.sqrt(200)
    assert result["standard_error"] == pytest.approx(expected)


def test_perplexity_error_agrees_with_resampling():
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 100, 300)
    nll = tokens * rng.normal(3.0, 0.2, 300)
    worse = nll + tokens * rng.normal(0.1, 0.05, 300)
    base, adapted = (
        Metric("perplexity", np.stack([values, tokens], 1)) for values in (nll, worse)
    )
    deltas = []
    for _ in range(2000):
        drawn = rng.integers(300, size=300)
        deltas.append(
            Metric("perplexity", adapted.items[drawn]).score
            - Metric("perplexity", base.items[drawn]).score
        )
    result = paired_delta(base, adapted)
    assert result["base"] == pytest.approx(np.exp(nll.sum() / tokens.sum()))
    assert result["standard_error"] == pytest.approx(np.std(deltas), rel=0.1)


def test_equal_models_have_no_delta_and_no_error():
    metric = Metric("mean", [(1, 1), (0, 1), (1, 1)])
    result = paired_delta(metric, metric)
    assert (result["delta"], result["standard_error"]) == (0.0, 0.0)


def test_different_items_cannot_be_paired():
    with pytest.raises(ValueError, match="same items"):
        paired_delta(Metric("mean", [(1, 1)]), Metric("mean", [(1, 1), (0, 1)]))


def test_metric_survives_json():
    metric = Metric("perplexity", [(3.5, 2), (1.25, 1)])
    again = Metric.from_json(metric.to_json())
    assert again.score == metric.score and (again.items == metric.items).all()


def test_limited_items_are_spread_over_all():
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 4) == spread(3) == [0, 1, 2]
