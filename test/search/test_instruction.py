"""Instructions on speech: the text around it, and the answer to it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError

from espnet_dus import Speech2Text
from espnet_dus.search.instruction import around_speech

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EXAMPLES = [("one two", "un deux"), ("yes", "oui")]


@pytest.fixture
def tokenizer(tiny_lm):
    return tiny_lm[1]


@pytest.fixture
def speech2text(experiment):
    files = experiment / "config.yaml", experiment / "valid.acc.ave.pth"
    return Speech2Text(*files, search={"no_speech": 0.0})


def test_without_a_chat_template_the_text_around_speech_is_lines(tokenizer):
    before, behind = around_speech(tokenizer, "Translate.", EXAMPLES)
    assert before == (
        "Translate.\n\nInput: one two\nAnswer: un deux\n\nInput: yes\nAnswer: oui\n\n"
        "Input: "
    )
    assert behind == "\nAnswer:"


def test_in_a_chat_template_examples_are_turns_and_speech_is_in_the_last(tokenizer):
    tokenizer.chat_template = TEMPLATE
    # a mark in the user's own words is not where the speech is
    before, behind = around_speech(tokenizer, "Translate <speech>.", EXAMPLES[:1])
    assert before == (
        "<|im_start|>user\nTranslate <speech>.\n\none two<|im_end|>"
        "<|im_start|>assistant\nun deux<|im_end|>"
        "<|im_start|>user\nTranslate <speech>.\n\n"
    )
    assert behind == "<|im_end|><|im_start|>assistant\n"


def test_no_instruction_and_a_template_without_content_are_errors(tokenizer):
    with pytest.raises(ValueError, match="the instruction is empty"):
        around_speech(tokenizer, " ")
    tokenizer.chat_template = "{{ messages[0]['role'] }}"
    with pytest.raises(ValueError, match="no place for the speech"):
        around_speech(tokenizer, "Translate.")


@pytest.mark.parametrize("template", [None, TEMPLATE])
@torch.no_grad()
def test_the_answer_is_greedy_on_instruction_speech_and_end_of_turn(
    speech2text, noises, template
):
    model, tokenizer = speech2text.model, speech2text.model.tokenizer
    tokenizer.chat_template = template
    (speech,) = noises(0.9)
    streamed = []
    streamer = SimpleNamespace(put=lambda ids: streamed.extend(ids.flatten().tolist()))
    streamer.end = lambda: streamed.append("end")
    answer = speech2text.ask(speech, "Translate.", EXAMPLES, 6, streamer)
    *ids, end = streamed
    assert end == "end" and 0 < len(ids) <= 6
    assert answer == tokenizer.decode(ids, skip_special_tokens=True).strip()

    # by the full stack, without a cache
    embed = model.lm.get_input_embeddings()
    read, length = model.embed_speech(
        torch.from_numpy(speech)[None], torch.tensor([len(speech)])
    )
    before, behind = (
        embed(torch.tensor([tokenizer(text, add_special_tokens=False).input_ids]))
        for text in around_speech(tokenizer, "Translate.", EXAMPLES)
    )
    inputs = torch.cat([before, read, behind, embed(torch.tensor([ids]))], dim=1)
    mask = torch.zeros(inputs.shape[:2], dtype=torch.bool)
    mask[:, before.size(1) : before.size(1) + int(length)] = True
    logits = model.lm(inputs_embeds=inputs, speech_mask=mask).logits[0]
    assert logits[-len(ids) - 1 : -1].argmax(-1).tolist() == ids


def test_the_answer_depends_on_the_speech_and_on_the_examples(speech2text, noises):
    one, other = noises(0.9, 1.3)
    ends = speech2text.model.generation_config
    ends.eos_token_id = []  # to the limit
    ask = speech2text.ask
    first = ask(one, "Translate.", max_new_tokens=12)
    assert first and first != ask(other, "Translate.", max_new_tokens=12)
    assert first != ask(one, "Translate.", EXAMPLES, max_new_tokens=12)


def test_silence_and_too_short_a_recording_are_not_answered(speech2text, noises):
    with pytest.raises(TooShortUttError, match="has 100 samples"):
        speech2text.ask(noises(0.9)[0][:100], "Translate.")
    from dataclasses import replace

    speech2text.search = replace(speech2text.search, no_speech=0.5)
    with pytest.raises(ValueError, match="nobody speaks in the audio"):
        speech2text.ask(np.zeros(16000, np.float32), "Translate.")


@torch.no_grad()
def test_every_arm_answers_as_its_full_stack_says(make_arm, arm, noises, encode_all):
    model = make_arm(arm)
    model.generation_config.eos_token_id = []
    encoded = encode_all(model, noises(0.9), with_ctc=False)
    before, behind = torch.tensor([[5, 9, 11]]), torch.tensor([[7, 3]])
    options = dict(max_new_tokens=5, do_sample=False)
    ids = model.generate_answer(encoded, before, behind, **options)
    assert ids.shape == (1, 5)
    embed = model.lm.get_input_embeddings()
    text = embed(torch.cat([behind, ids], dim=1))
    inputs = torch.cat([embed(before), encoded.read_BRD, text], dim=1)
    masks = {}
    if arm not in ("encoder", "compressed", "lora", "full", "frozen"):
        mask = torch.zeros(inputs.shape[:2], dtype=torch.bool)
        mask[:, 3 : 3 + int(encoded.read_B)] = True
        masks["speech_mask"] = mask
    logits = model.lm(inputs_embeds=inputs, **masks).logits
    assert torch.equal(logits[:, -6:-1].argmax(-1), ids)
