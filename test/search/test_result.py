"""From tokens to a hypothesis: the confidence of each word."""

import math

import pytest

from espnet_dus.search.result import hypothesis, nothing, word_confidences


@pytest.fixture
def tokenizer(tiny_lm):
    return tiny_lm[1]


@pytest.mark.parametrize(
    "text", [" HELLO WORLD, HOW", "HELLO YES", " STOP", "  YES\n STOP", ""]
)
def test_a_words_confidence_is_the_product_of_its_tokens(tokenizer, text):
    ids = tokenizer(text).input_ids
    scores = [-0.1 * (i + 1) for i in range(len(ids))]
    found = word_confidences(tokenizer, ids, [*scores, -9.0])  # EOS: no word's
    assert len(found) == len(text.split())
    assert math.prod(found) == pytest.approx(math.exp(sum(scores)))
    if text.startswith(" HELLO"):
        first = len(tokenizer(" HELLO").input_ids)
        assert found[0] == pytest.approx(math.exp(sum(scores[:first])))


def test_space_at_the_end_is_no_words(tokenizer):
    ids = tokenizer(" YES ").input_ids
    assert word_confidences(tokenizer, ids, [-0.5] * len(ids)) == word_confidences(
        tokenizer, ids[:-1], [-0.5] * (len(ids) - 1)
    )


def test_a_score_above_zero_is_no_more_than_certain(tokenizer):
    ids = tokenizer(" YES").input_ids
    assert word_confidences(tokenizer, ids, [0.5] * len(ids)) == [1.0]


def test_a_hypothesis_unpacks_as_espnets(tiny_model):
    model = tiny_model()
    ids = model.tokenizer(" HELLO WORLD").input_ids
    made = hypothesis(model, ids, [-0.5] * len(ids), -3.0, 7, ["length"])
    text, token, token_int, score, *_ = made
    assert (text, token_int, score) == ("HELLO WORLD", ids, -3.0)
    assert model.tokenizer.convert_tokens_to_ids(token) == ids
    assert len(made.confidence) == 2
    assert (made.llm_passes, made.guards, made.word_times) == (7, ["length"], None)


def test_nothing_is_a_hypothesis_too():
    text, token, token_int, score, *_ = nothing("no_speech")
    assert (text, token, token_int, score) == ("", [], [], 0.0)
    assert nothing("no_speech").guards == ["no_speech"]
