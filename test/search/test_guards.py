"""Guards against hallucinated text."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch

from espnet_dus.data.corpora.an4 import find_corpus
from espnet_dus.search import greedy
from espnet_dus.search.beam import beam_search
from espnet_dus.search.draft import Draft
from espnet_dus.search.greedy import greedy_search
from espnet_dus.search.guards import has_speech, length_limits, loop_continuations
from espnet_dus.search.vad import voice_detector


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


def test_threads_do_not_disturb_each_other(real_speech):
    samples, fs = real_speech[0]
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(samples))
    both = [samples, noise.astype(np.float32)] * 12
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda speech: has_speech(speech, fs, 0.5), both))
        other = threads.submit(voice_detector).result()
    assert found == [True, False] * 12
    assert voice_detector() is voice_detector() is not other


def test_audio_too_short_to_tell_is_taken_for_speech():
    assert has_speech(np.zeros(1000, np.float32), 16000, 0.5)


@pytest.mark.parametrize(
    "ids, repetition, tokens",
    [
        ([1, 2, 2, 2], 3, [2]),
        ([1, 2, 2, 2], 4, []),
        ([1, 2, 2, 2, 1], 3, []),
        ([5, 1, 2, 1, 2, 1, 2], 3, [1]),
        ([1, 2, 3, 4, 5, 6, 7, 8] * 2, 2, [1]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9] * 2, 2, []),
        ([3, 2, 2, 3, 2, 2], 2, [2, 3]),  # two loops end here
        ([2, 2, 2, 2], 0, []),
        ([], 3, []),
    ],
)
def test_a_loop_is_a_sequence_repeated_at_the_end(ids, repetition, tokens):
    assert loop_continuations(ids, repetition) == tokens


def test_the_limit_is_at_least_one_token():
    limits = length_limits(torch.tensor([1, 10, 11]), 0.25)
    assert limits.tolist() == [1, 3, 3]


def test_a_ratio_of_0_allows_as_many_tokens_as_positions_as_espnets():
    assert length_limits(torch.tensor([1, 7]), 0.0).tolist() == [1, 7]


class Script(torch.nn.Module):
    """An LM head that wants to write a text, whatever the LM says, and then EOS.

    `then` is its second choice everywhere.
    """

    def __init__(self, tokens, then, vocab_size):
        super().__init__()
        self.tokens, self.then, self.vocab_size = tokens, then, vocab_size
        self.num_calls = 0

    def forward(self, hidden_BND):
        logits = torch.zeros((*hidden_BND.shape[:2], self.vocab_size))
        for n in range(logits.shape[1]):
            logits[:, n, self.then] = 10.0
            logits[:, n, self.tokens[self.num_calls + n]] = 20.0
        self.num_calls += logits.shape[1]
        return logits


@pytest.mark.parametrize("search, beam", [(greedy_search, 1), (beam_search, 3)])
def test_a_loop_is_not_continued(make_arm, encode_all, config, noises, search, beam):
    model = make_arm("encoder")
    tokens = model.tokenizer(" STOP the cat").input_ids
    assert 2 <= len(tokens) <= 8
    model.lm.lm_head = Script(tokens * 99, model.eos_id, len(model.tokenizer))
    encoded = encode_all(model, noises(4.0))
    options = config(beam_size=beam, repetition=3, penalty=float(beam > 1))
    found = search(model, encoded, options)[0]
    hypothesis = found[0] if beam > 1 else found
    assert hypothesis.token_int == tokens * 3
    assert hypothesis.guards == ["repetition"]
    assert len(hypothesis.confidence) == 9
    assert min(hypothesis.confidence) > 0.99


@pytest.mark.parametrize("search, beam", [(greedy_search, 1), (beam_search, 3)])
def test_what_is_said_behind_repetitions_is_kept(
    make_arm, encode_all, config, noises, search, beam
):
    model = make_arm("encoder")
    said = model.tokenizer(" go" + " one" * 3 + " the cat").input_ids
    script = [*said, model.eos_id] * 9
    model.lm.lm_head = Script(script, 0, len(model.tokenizer))
    encoded = encode_all(model, noises(4.0))
    found = search(model, encoded, config(beam_size=beam, repetition=3))[0]
    hypothesis = found[0] if beam > 1 else found
    assert hypothesis.token_int == said
    assert hypothesis.guards == []


def test_a_draft_is_verified_without_its_loop(
    make_arm, encode_all, config, noises, monkeypatch
):
    model = make_arm("encoder")
    (stop,) = set(model.tokenizer(" one").input_ids[:1])
    drafts = [Draft([stop] * 9)]
    monkeypatch.setattr(greedy, "ctc_drafts", lambda *_: drafts)
    model.lm.lm_head = Script([stop] * 99, model.eos_id, len(model.tokenizer))
    encoded = encode_all(model, noises(4.0))
    (found,) = greedy_search(model, encoded, config(draft=True, repetition=4))
    assert (found.token_int, found.guards) == ([stop] * 4, ["repetition"])
    assert found.llm_passes == 1


def test_the_limit_is_reported(make_arm, encode_all, config, noises):
    model = make_arm("encoder")
    for search, beam in ((greedy_search, 1), (beam_search, 3)):
        encoded = encode_all(model, noises(0.98))
        found = search(model, encoded, config(beam_size=beam, maxlenratio=0.5))[0]
        hypothesis = found[0] if beam > 1 else found
        assert hypothesis.guards == ["length"]
        limit = length_limits(encoded.lengths_B, 0.5)
        assert len(hypothesis.token_int) == int(limit)
