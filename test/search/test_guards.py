"""What keeps an LLM from writing what nobody said."""

import numpy as np
import pytest
import soundfile
import torch

from espnet_dus.data.corpora.an4 import find_corpus
from espnet_dus.search.beam import beam_search
from espnet_dus.search.greedy import greedy_search
from espnet_dus.search.guards import has_speech, length_limits, loop_length


@pytest.fixture(scope="module")
def real_speech(tmp_path_factory):
    """The utterances in the espnet package: (samples, rate)."""
    root = find_corpus("espnet", tmp_path_factory.mktemp("an4"))
    return [soundfile.read(f, dtype="float32") for f in sorted(root.rglob("*.sph"))]


def test_speech_is_heard_at_any_rate(real_speech):
    assert len(real_speech) > 3
    for samples, fs in real_speech:
        assert has_speech(samples, fs, 0.5)
        assert has_speech(samples[::2].copy(), fs // 2, 0.5)
        assert has_speech(torch.from_numpy(samples), fs, 0.5)


@pytest.mark.parametrize("level", [0.0, 1e-3, 0.1])
def test_noise_and_silence_are_not_speech(level):
    noise = np.random.default_rng(0).standard_normal(16000 * 8)
    samples = (level * noise).astype(np.float32)
    assert not has_speech(samples, 16000, 0.5)


def test_audio_too_short_to_tell_is_taken_for_speech():
    assert has_speech(np.zeros(1000, np.float32), 16000, 0.5)


@pytest.mark.parametrize(
    "ids, repetition, length",
    [
        ([1, 2, 2, 2], 3, 1),
        ([1, 2, 2, 2], 4, 0),
        ([1, 2, 2, 2, 1], 3, 0),
        ([5, 1, 2, 1, 2, 1, 2], 3, 2),
        ([1, 2, 3, 4, 5, 6, 7, 8] * 2, 2, 8),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9] * 2, 2, 0),
        ([2, 2, 2, 2], 0, 0),
        ([], 3, 0),
    ],
)
def test_a_loop_is_a_sequence_that_stands_so_often_at_the_end(ids, repetition, length):
    assert loop_length(ids, repetition) == length


def test_the_limit_is_at_least_one_token():
    limits = length_limits(torch.tensor([1, 10, 11]), 0.25)
    assert limits.tolist() == [1, 3, 3]
    assert length_limits(torch.tensor([7]), 0.0).tolist() == [1]


class Parrot(torch.nn.Module):
    """An LM head that goes through tokens for ever, whatever the LM says."""

    def __init__(self, tokens, vocab_size):
        super().__init__()
        self.tokens = tokens
        self.vocab_size = vocab_size
        self.num_calls = 0

    def forward(self, hidden_BND):
        shape = (*hidden_BND.shape[:2], self.vocab_size)
        logits = torch.zeros(shape)
        for n in range(shape[1]):
            logits[:, n, self.tokens[(self.num_calls + n) % len(self.tokens)]] = 20.0
        self.num_calls += shape[1]
        return logits


@pytest.mark.parametrize("search, beam", [(greedy_search, 1), (beam_search, 3)])
def test_a_loop_ends_the_text_at_its_first_occurrence(
    make_arm, encode_all, config, noises, search, beam
):
    model = make_arm("encoder")
    tokens = model.tokenizer(" STOP the cat").input_ids
    model.lm.lm_head = Parrot(tokens, len(model.tokenizer))
    assert 2 <= len(tokens) <= 8
    encoded = encode_all(model, noises(4.0))
    found = search(model, encoded, config(beam_size=beam, repetition=3))[0]
    hypothesis = found[0] if beam > 1 else found
    assert hypothesis.token_int == tokens
    assert hypothesis.guards == ["repetition"]
    assert hypothesis.text == "STOP the cat"
    assert len(hypothesis.confidence) == 3
    assert min(hypothesis.confidence) > 0.99


def test_the_limit_is_reported(make_arm, encode_all, config, noises):
    model = make_arm("encoder")
    for search, beam in ((greedy_search, 1), (beam_search, 3)):
        encoded = encode_all(model, noises(0.98))
        found = search(model, encoded, config(beam_size=beam, maxlenratio=0.5))[0]
        hypothesis = found[0] if beam > 1 else found
        assert hypothesis.guards == ["length"]
        limit = length_limits(encoded.lengths_B, 0.5)
        assert len(hypothesis.token_int) == int(limit)
