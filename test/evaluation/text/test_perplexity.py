"""Perplexity: every token once, with its context."""

import numpy as np
import pytest
import torch

from espnet_dus.evaluation.text.perplexity import read_text, score_text, windows

TEXT = "the cat sat on the mat and the dog ran after it " * 6


@pytest.mark.parametrize("length, window", [(50, 16), (49, 16), (9, 16), (2, 1)])
def test_each_token_but_the_first_is_predicted_once(length, window):
    targets = []
    for start, stop, scored in windows(length, window):
        assert stop - start <= window
        targets += range(stop - scored + 1, stop + 1)
    assert targets == list(range(1, length))


def test_the_last_window_has_its_full_context():
    assert windows(40, 16) == [(0, 16, 16), (16, 32, 16), (23, 39, 7)]


def test_one_window_equals_the_loss_of_transformers(tiny_lm):
    lm, tokenizer = tiny_lm
    ids = tokenizer(TEXT, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        loss = lm(input_ids=ids, labels=ids).loss.item()
    metrics = score_text(TEXT, tokenizer, lm, window=512)["base"]
    assert metrics["token_perplexity"].score == pytest.approx(np.exp(loss), rel=1e-5)
    total = loss * (ids.shape[1] - 1)
    assert metrics["word_perplexity"].score == pytest.approx(
        np.exp(total / len(TEXT.split())), rel=1e-5
    )


def test_log_probabilities_are_those_of_their_window(tiny_lm):
    lm, tokenizer = tiny_lm
    ids = tokenizer(TEXT, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    items = score_text(TEXT, tokenizer, lm, window=16)["base"]["token_perplexity"].items
    assert items[:, 1].sum() == len(ids) - 1
    start, stop, scored = windows(len(ids), 16)[-1]
    assert scored < 16
    with torch.inference_mode():
        log_probs = lm(input_ids=ids[None, start:stop]).logits[0].log_softmax(-1)
    rows = torch.arange(16 - scored, 16)
    expected = log_probs[rows, ids[start + rows + 1]].sum().item()
    assert items[-1].tolist() == [pytest.approx(-expected), scored]


def test_a_model_has_no_divergence_from_itself(tiny_lm):
    lm, tokenizer = tiny_lm
    score = score_text(TEXT, tokenizer, lm, lm, window=32)
    assert score["kl"]["kl_per_token"].score == 0.0
    for name, metric in score["base"].items():
        assert (metric.items == score["adapted"][name].items).all()


def test_divergence_is_that_of_torch(tiny_lm, tiny_base_lm_dir):
    from transformers import AutoModelForCausalLM

    lm, tokenizer = tiny_lm
    other = AutoModelForCausalLM.from_pretrained(tiny_base_lm_dir, dtype=torch.float32)
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    score = score_text(TEXT, tokenizer, lm, other.eval(), window=512)
    ids = tokenizer(TEXT, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        p, q = (m(input_ids=ids).logits[0, :-1].log_softmax(-1) for m in (lm, other))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    assert score["kl"]["kl_per_token"].score == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 0


def test_limit_takes_that_many_windows(tiny_lm):
    lm, tokenizer = tiny_lm
    metrics = score_text(TEXT, tokenizer, lm, window=8, limit=3)["base"]
    assert {len(metric.items) for metric in metrics.values()} == {3}


def test_text_that_is_missing_or_empty_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such text file"):
        read_text(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="empty.txt: fewer than two words"):
        read_text(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("caf\xe9 noir".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.txt: not UTF-8"):
        read_text(tmp_path / "latin.txt")
