"""The head is spared the context; the scores are the harness's own."""

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from espnet_dus.evaluation.text.harness import HarnessLM
from espnet_dus.evaluation.text.tasks import load_tasks, run_task

# Of different lengths; the two of one token after one context share their input
REQUESTS = [
    (("a", "b"), [5, 9, 4], [7]),
    (("a", "c"), [5, 9, 4], [11]),
    (("a", "d"), [5, 9, 4], [7, 8, 3, 6]),
    (("e", "f"), [2] * 17, [4, 5]),
    (None, [3], [4, 9, 9, 1, 12]),
]


@pytest.fixture
def plain(tiny_lm):
    lm, tokenizer = tiny_lm
    return HFLM(pretrained=lm, tokenizer=tokenizer, backend="causal", batch_size=2)


def assert_same(got, expected):
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    assert [value for value, _ in got] == pytest.approx([v for v, _ in expected])


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_scores_are_those_of_the_harness(tiny_lm, plain, batch_size):
    harness = HarnessLM(*tiny_lm, batch_size=batch_size)
    assert_same(
        harness._loglikelihood_tokens(REQUESTS), plain._loglikelihood_tokens(REQUESTS)
    )


def test_batches_of_long_inputs_are_smaller(tiny_lm, plain, monkeypatch):
    monkeypatch.setattr("espnet_dus.evaluation.text.harness.MAX_BATCH_TOKENS", 12)
    harness, shapes = HarnessLM(*tiny_lm, batch_size=16), []
    hook = harness.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    scores = harness._loglikelihood_tokens(REQUESTS)
    hook.remove()
    assert shapes == [(1, 18), (2, 6), (1, 3)]
    assert_same(scores, plain._loglikelihood_tokens(REQUESTS))


def test_likeliest_continuation_is_recognized(tiny_lm, plain):
    lm, _ = tiny_lm
    ids = torch.tensor([[5, 9, 4]])
    for _ in range(2):
        ids = torch.cat([ids, lm(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    context, (first, second) = [5, 9, 4], ids[0, 3:].tolist()
    other = second + 1 if second < 20 else second - 1
    requests = [
        (("a", "b"), context, [first, second]),
        (("a", "c"), context, [first, other]),
    ]
    scores = HarnessLM(*tiny_lm, batch_size=2)._loglikelihood_tokens(requests)
    assert [greedy for _, greedy in scores] == [True, False]
    assert_same(scores, plain._loglikelihood_tokens(requests))


def test_too_long_context_loses_its_beginning(tiny_lm, plain):
    longest = plain.max_length
    requests = [(("a", "b"), [n % 20 for n in range(longest + 7)], [4, 5])]
    assert_same(
        HarnessLM(*tiny_lm, batch_size=2)._loglikelihood_tokens(requests),
        plain._loglikelihood_tokens(requests),
    )


@pytest.mark.parametrize("length", [0, 10_000])
def test_continuation_that_cannot_be_scored_is_named(tiny_lm, length):
    harness = HarnessLM(*tiny_lm, batch_size=2)
    with pytest.raises(ValueError, match=f"probability of {length} tokens.*'ask'"):
        harness._loglikelihood_tokens([(("ask", "answer"), [5], [7] * length)])


def test_tasks_are_scored_as_by_the_harness(text_data, tiny_lm, plain):
    for name in ("local_lambada", "local_hellaswag", "local_blimp"):
        (task,) = load_tasks([name], text_data)
        expected = run_task(task, plain)
        (task,) = load_tasks([name], text_data)
        got = run_task(task, HarnessLM(*tiny_lm, batch_size=2))
        assert got.keys() == expected.keys()
        for metric in got:
            assert got[metric].items == pytest.approx(expected[metric].items, rel=1e-4)
