"""Greedy search: a batch gives what each utterance gives alone."""

import shutil

import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from transformers import GenerationConfig

from espnet_dus.search.config import SearchConfig
from espnet_dus.search.encoding import encode
from espnet_dus.search.greedy import greedy_search

SECONDS = (1.3, 0.3, 0.98, 0.5, 2.1, 0.7)
# an arm that inserts nothing
PLAIN = dict(
    adaptation="frozen", adaptation_conf={}, model_conf={"ctc_layer": "base:0"}
)


@pytest.fixture
def model(tiny_model, randomise, adaptation_conf, kind_and_scope):
    model = tiny_model(adaptation_conf=adaptation_conf(*kind_and_scope)).eval()
    # only these: an embedder at random too would drown the speech
    randomise(model.lm, seed=3)
    return model


@pytest.fixture
def plain_model(tiny_model):
    return tiny_model(**PLAIN).eval()


def search(model, speeches, **options):
    speeches = [torch.from_numpy(speech) for speech in speeches]
    lengths = torch.tensor([len(speech) for speech in speeches])
    padded = torch.nn.utils.rnn.pad_sequence(speeches, batch_first=True)
    options = SearchConfig(repetition=0, **options)
    return greedy_search(model, encode(model, padded, lengths, options.draft), options)


def test_a_batch_gives_what_each_utterance_gives_alone(model, noises):
    speeches = noises(*SECONDS)
    together = search(model, speeches)
    assert len({tuple(h.token_int) for h in together}) > 1
    # a token that some utterances have in the middle becomes EOS: now they end early
    longest = together[4].token_int
    for eos in (model.eos_id, longest[len(longest) // 2]):
        model.eos_id = eos
        together = search(model, speeches)
        for speech, hypothesis in zip(speeches, together):
            (alone,) = search(model, [speech])
            assert hypothesis.token_int == alone.token_int
            assert hypothesis[:2] == alone[:2]
            assert hypothesis.score == pytest.approx(alone.score, abs=1e-3)
            assert eos not in hypothesis.token_int
    assert len(together[4].token_int) <= len(longest) // 2


@torch.no_grad()
def test_each_token_is_the_best_one_of_the_full_forward(model, noises, full_logits):
    (speech,) = noises(0.9)
    (hypothesis,) = search(model, [speech])
    logits = full_logits(model, speech, hypothesis.token_int)
    assert logits.argmax(-1).tolist() == hypothesis.token_int
    score = logits.log_softmax(-1).amax(-1).sum().item()
    assert hypothesis.score == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("maxlenratio", [0.0, 0.5, 1.0, 1.7])
def test_the_length_is_limited_by_the_speech_positions(
    plain_model, noises, maxlenratio
):
    speeches = noises(0.3, 1.3)
    lengths = plain_model.embed_speech(
        torch.from_numpy(speeches[1])[None], torch.tensor([len(speeches[1])])
    )[1]
    short, long = search(plain_model, speeches, maxlenratio=maxlenratio)
    limit = max(1, -int(-int(lengths) * (maxlenratio or 1.0) // 1))
    assert len(long.token_int) == limit
    assert 1 <= len(short.token_int) <= limit


def test_the_search_ends_when_each_utterance_is_at_its_own_end(
    tiny_model, randomise, noises
):
    model, speeches = tiny_model().eval(), noises(0.3, 1.3)
    randomise(model.lm, seed=3)
    short, long = (hypothesis.token_int for hypothesis in search(model, speeches))
    # now the long one ends early, and the short one at its limit
    end, model.eos_id = next((i, t) for i, t in enumerate(long) if t not in short)
    num_steps = max(len(short), end + 1)
    assert num_steps < len(long)
    steps = []
    model.lm.model.register_forward_hook(lambda *_: steps.append(1))
    search(model, speeches)
    assert len(steps) == num_steps


def test_the_score_counts_eos(plain_model, noises):
    (before,) = search(plain_model, noises(0.9))
    plain_model.eos_id = before.token_int[0]
    (after,) = search(plain_model, noises(0.9))
    assert (after.text, after.token, after.token_int) == ("", [], [])
    assert after.score < 0


def test_a_hypothesis_is_the_same_in_all_its_forms(plain_model, noises):
    (hypothesis,) = search(plain_model, noises(0.9))
    tokenizer = plain_model.tokenizer
    assert tokenizer.convert_tokens_to_ids(hypothesis.token) == hypothesis.token_int
    text = tokenizer.decode(hypothesis.token_int, skip_special_tokens=True)
    assert hypothesis.text == text.strip()


def test_generation_options_of_the_base_lm_have_no_say(
    plain_model, tiny_model, tiny_base_lm_dir, tmp_path, noises
):
    speeches = noises(0.9, 1.3)
    expected = search(plain_model, speeches)
    directory = shutil.copytree(tiny_base_lm_dir, tmp_path / "lm")
    GenerationConfig(
        do_sample=True,
        temperature=5.0,
        num_beams=4,
        repetition_penalty=3.0,
        no_repeat_ngram_size=1,
        suppress_tokens=expected[0].token_int[:1],
    ).save_pretrained(directory)
    model = tiny_model(base_lm=str(directory), **PLAIN).eval()
    assert search(model, speeches) == expected


def test_too_short_an_utterance_is_an_error(plain_model, noises):
    with pytest.raises(TooShortUttError, match="frames"):
        search(plain_model, noises(0.9, 0.1))
