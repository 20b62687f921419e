"""A trained model as one object: transcripts, n-best lists, text, precision."""

import numpy as np
import pytest
import torch
import yaml
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from transformers import AutoModelForCausalLM

from espnet_dus import Speech2Text
from espnet_dus.data.audio import AudioError
from espnet_dus.model.upscaling import inserted_layers
from espnet_dus.search.result import Hypothesis

NO_GUARDS = {"no_speech": 0.0, "repetition": 0}


@pytest.fixture(scope="module")
def load(make_arm, tiny_options, tmp_path_factory):
    """Return a function that makes a Speech2Text of a model and its options."""

    def load(model, options, search=None, **kwargs):
        directory = tmp_path_factory.mktemp("exp")
        (directory / "config.yaml").write_text(yaml.safe_dump(vars(options)))
        torch.save(model.state_dict(), directory / "model.pth")
        return Speech2Text(
            directory / "config.yaml",
            directory / "model.pth",
            search={**NO_GUARDS, **(search or {})},
            **kwargs,
        )

    return load


@pytest.fixture(scope="module")
def make(load, tiny_model, tiny_options, randomise):
    """Return a function that makes a Speech2Text of a tiny model."""

    def make(search=None, arm=None, **kwargs):
        arm = arm or {}
        model = tiny_model(**arm)
        randomise(model.lm, seed=3)
        return load(model, tiny_options(**arm), search, **kwargs)

    return make


LORA = dict(
    adaptation="lora", adaptation_conf={"rank": 2}, model_conf={"ctc_layer": "base:1"}
)
FULL = dict(adaptation="full", adaptation_conf={}, model_conf={"ctc_layer": "base:1"})


def ids(hypotheses):
    return [h.token_int for h in hypotheses]


def test_a_result_unpacks_as_espnets(make, noises):
    (speech,) = noises(0.9)
    result = make()(speech)
    text, token, token_int, score, *_ = result[0]
    assert len(result) == 1 and isinstance(result[0], Hypothesis)
    assert token_int and len(token) == len(token_int) and score < 0
    assert len(result[0].confidence) == len(text.split())
    assert result[0].llm_passes > 1


@pytest.mark.parametrize("search", [{"beam_size": 3, "nbest": 3}, {"draft": True}])
def test_one_utterance_gives_its_nbest_and_a_list_the_best_of_each(
    make, noises, search
):
    speech2text, speeches = make(search), noises(0.9, 0.5)
    nbest = speech2text(speeches[0])
    assert len(nbest) == search.get("nbest", 1)
    assert [h.score for h in nbest] == sorted((h.score for h in nbest))[::-1]
    best = speech2text(speeches)
    assert ids(best) == [speech2text(s)[0].token_int for s in speeches]
    assert [ids(found) for found in speech2text.nbest(speeches)] == [
        ids(speech2text(speech)) for speech in speeches
    ]


@pytest.mark.parametrize("search", [{}, {"beam_size": 2}, {"draft": True}])
@torch.no_grad()
def test_a_prompt_before_the_speech_is_read_alone_and_in_a_batch(make, noises, search):
    speech2text, speeches = make(search), noises(0.9, 0.5)
    prompts = ["the dog ran after it", "yes"]
    best = speech2text(speeches, prompts)
    assert ids(best) == [
        speech2text(speech, prompt)[0].token_int
        for speech, prompt in zip(speeches, prompts)
    ]
    assert ids(best) != ids(speech2text(speeches))
    if not search:  # by the full stack
        model = speech2text.model
        embedded = model.embed_speech(
            torch.from_numpy(speeches[0])[None], torch.tensor([len(speeches[0])])
        )
        before = torch.tensor([model.tokenizer(prompts[0]).input_ids])
        text = torch.tensor([best[0].token_int])
        lengths = torch.tensor([before.size(1)]), torch.tensor([text.size(1)])
        seq = model.join_text(*embedded, text, lengths[1], before=(before, lengths[0]))
        logits = model.lm.lm_head(model.upper(model.lower(seq), seq))[0]
        end = int(seq.lengths_B)
        behind = logits[end - text.size(1) - 1 : end - 1]
        assert behind.argmax(-1).tolist() == best[0].token_int
    with pytest.raises(ValueError, match="1 prompts for 2 utterances"):
        speech2text(speeches, ["yes"])


def test_options_that_do_not_fit_the_model_are_errors(
    make, load, tiny_model, tiny_options
):
    with pytest.raises(ValueError, match="unknown option.*beams"):
        make({"beams": 3})
    with pytest.raises(ValueError, match="dtype: 'int4'"):
        make(dtype="int4")
    no_ctc = dict(
        adaptation="frozen",
        adaptation_conf={},
        ctc_units=None,
        model_conf={"ctc_weight": 0.0},
    )
    for search in ({"draft": True}, {"beam_size": 2, "ctc_weight": 0.5}):
        with pytest.raises(ValueError, match="without a CTC head"):
            load(tiny_model(**no_ctc), tiny_options(**no_ctc), search)


def test_silence_and_noise_give_nothing_and_leave_the_llm_alone(make, noises):
    speech2text = make({"no_speech": 0.5})
    passes = []
    speech2text.model.lm.register_forward_hook(lambda *_: passes.append(1))
    found = speech2text([*noises(1.5), np.zeros(16000, np.float32)])
    assert [(h.text, h.token_int, h.guards) for h in found] == 2 * [
        ("", [], ["no_speech"])
    ]
    assert not passes


def test_audio_of_any_library_gives_the_same_transcript(make, noises):
    speech2text, (speech,) = make(), noises(0.9)
    expected = speech2text(speech)[0].token_int
    pcm16 = np.round(speech * 32768).clip(-32768, 32767)
    for form in (
        speech.astype(np.float64),
        speech[::-1].copy()[::-1],
        torch.tensor(speech)[None],
        np.stack([speech, speech], 1),
        np.stack([speech, -speech]),
        speech.tolist(),
    ):
        assert speech2text(form)[0].token_int == expected
    (batched,) = speech2text([speech.tolist()])
    assert batched.token_int == expected
    integers = speech2text(pcm16.astype(np.int16))[0].token_int
    assert integers == speech2text(pcm16 / 32768)[0].token_int
    for bad in (speech * np.nan, speech[:0], pcm16, [1, 2, 3]):
        with pytest.raises(AudioError):
            speech2text(bad)


def test_too_short_an_utterance_is_an_error(make, noises):
    with pytest.raises(TooShortUttError, match="has 100 samples"):
        make()(noises(0.9)[0][:100])


@pytest.mark.parametrize("arm", [None, LORA, FULL], ids=["dus", "lora", "full"])
@pytest.mark.parametrize(
    "search", [{"draft": True}, {"beam_size": 2, "ctc_weight": 0.5}]
)
def test_bfloat16_loads_and_decodes(make, noises, arm, search):
    speech2text = make(search, arm, dtype="bfloat16")
    found = speech2text(noises(0.9, 0.4))
    assert all(h.token_int and np.isfinite(h.score) for h in found)
    lm = speech2text.model.lm
    assert lm.get_input_embeddings().weight.dtype == torch.bfloat16
    trained = [p for layer in inserted_layers(lm).values() for p in layer.parameters()]
    assert all(p.dtype == torch.float32 for p in trained)


def test_speech_beyond_the_base_lms_context_is_warned_of(
    make, noises, caplog, monkeypatch
):
    speech2text = make({"maxlenratio": 0.1})
    prompt = len(speech2text.model.prompt_ids)
    monkeypatch.setattr(speech2text.model.lm.config, "max_position_embeddings", 9)
    (speech,) = noises(0.9)
    speech2text(speech)
    num_positions = 10 + prompt
    expected = f"has {num_positions} positions, but the base LM's context is 9"
    assert expected in caplog.text


def test_it_chats_as_the_base_lm_does(make, tiny_base_lm_dir):
    speech2text = make()  # scope speech: text does not meet the inserted layers
    tokenizer = speech2text.model.tokenizer
    lm = AutoModelForCausalLM.from_pretrained(tiny_base_lm_dir, dtype=torch.float32)

    def expected(prompt):
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        made = lm.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = made[0, inputs.input_ids.size(1) :]
        return tokenizer.decode(new, skip_special_tokens=True).strip()

    assert speech2text.generate_text("the cat", 8) == expected("the cat")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    chat = "<|im_start|>user the cat<|im_end|><|im_start|>"
    assert speech2text.generate_text("the cat", 8) == expected(chat)
