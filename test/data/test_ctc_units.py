"""Transcripts that hold special tokens of the base LM: plain text, said once."""

import logging

import pytest

from espnet_dus.app import cli
from espnet_dus.data.ctc_units import (
    CTCUnits,
    report_special_tokens,
    transcript_tokens,
)
from espnet_dus.data.dataset import DUSPreprocessor

TEXTS = ["stop <|im_end|> the dog", "<|endoftext|>", "a <|im_end|>", "no < | such"]


def test_special_tokens_of_a_transcript_are_spelled(tiny_lm):
    tokenizer = tiny_lm[1]
    for text in TEXTS:
        tokens = transcript_tokens(tokenizer, text)
        assert not set(tokens) & set(tokenizer.all_special_tokens)
        assert tokenizer.convert_tokens_to_string(tokens) == f" {text}"
    # elsewhere, in prompts and chats, they are what they are
    assert tokenizer.eos_token in tokenizer.tokenize("a <|im_end|>")


def test_they_are_reported_once_with_their_number(tiny_lm, caplog):
    assert list(report_special_tokens(TEXTS, tiny_lm[1])) == TEXTS
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith(
        "3 of 4 transcripts hold special tokens of the base LM (<|endoftext|>, "
        "<|im_end|>), the first 'stop <|im_end|> the dog'"
    )
    caplog.clear()
    assert list(report_special_tokens(TEXTS[3:], tiny_lm[1])) == TEXTS[3:]
    assert not caplog.records


@pytest.mark.parametrize("unit_type", ["llm", "char"])
def test_training_meets_the_same_text_as_the_ctc_units(
    tiny_lm, tiny_base_lm_dir, tmp_path, noises, unit_type
):
    tokenizer = tiny_lm[1]
    units = CTCUnits.make(tmp_path, unit_type, TEXTS, tokenizer)
    assert not set(units.units) & set(tokenizer.all_special_tokens)
    preprocessor = DUSPreprocessor(tiny_base_lm_dir, train=True, ctc_units=units)
    data = preprocessor("u1", {"speech": noises(0.1)[0], "text": TEXTS[0]})
    assert tokenizer.eos_token_id not in data["text"]
    assert tokenizer.decode(data["text"]) == f" {TEXTS[0]}"
    assert units.decode(data["text_ctc"]) == TEXTS[0]
    assert preprocessor.tokenizer.prompt_tokens("<|im_end|>") == ["<|im_end|>"]


def test_stage_5_says_it(tiny_base_lm_dir, tmp_path, caplog):
    (tmp_path / "text").write_text("u1 halt <|im_start|>\nu2 go\n")
    caplog.set_level(logging.WARNING)
    cli.main(
        ["tokens", "--base_lm", str(tiny_base_lm_dir), "--text", str(tmp_path / "text")]
        + ["--out_dir", str(tmp_path / "tokens")]
    )
    (message,) = [m for m in caplog.messages if "special" in m]
    assert message.startswith("1 of 2 transcripts hold special tokens")
