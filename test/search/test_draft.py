"""Draft and verification: what greedy search gives, in fewer passes."""

import random

import pytest
import torch

from espnet_dus.data.ctc_units import CTCUnits
from espnet_dus.model.ctc_head import collapse
from espnet_dus.search import greedy
from espnet_dus.search.draft import Draft, ctc_drafts
from espnet_dus.search.greedy import greedy_search

SECONDS = (1.3, 0.3, 0.98, 0.5, 2.1, 0.7)
TRAINED_SECONDS = (1.3, 1.6, 0.9, 1.4)


def ids(hypotheses):
    return [h.token_int for h in hypotheses]


def spoilt(tokens, seed):
    """Return tokens with some wrong, some missing and some too many."""
    generator = random.Random(seed)
    result = []
    for token in tokens:
        fate = generator.random()
        if fate < 0.15:
            continue
        result.append(generator.randrange(3, 300) if fate < 0.3 else token)
        if fate > 0.9:
            result.append(generator.randrange(3, 300))
    return result


def same(found, expected):
    assert ids(found) == ids(expected)
    for one, other in zip(found, expected):
        assert one.score == pytest.approx(other.score, abs=1e-3)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-3)
        assert (one.text, one.guards) == (other.text, other.guards)


def test_a_draft_changes_nothing_but_the_number_of_passes(
    make_arm, encode_all, config, noises, monkeypatch, arm
):
    model, speeches = make_arm(arm), noises(*SECONDS)
    encoded = encode_all(model, speeches)
    plain = greedy_search(model, encoded, config())
    # EOS in the middle of a text: utterances leave the batch at different times
    model.eos_id = plain[4].token_int[len(plain[4].token_int) // 2]
    plain = greedy_search(model, encoded, config())
    assert len({len(h.token_int) for h in plain}) > 2
    for h in plain:
        assert h.llm_passes == len(h.token_int) + (h.guards != ["length"])

    same(greedy_search(model, encoded, config(draft=True)), plain)  # CTC's own draft

    def drafts(seed):
        def spoilt_drafts(model, ctc_BSU, lengths_B):
            chosen = [
                h for h, s in zip(plain, SECONDS) if len(lengths_B) > 1 or s == 2.1
            ]
            return [Draft(spoilt(h.token_int, seed)) for h in chosen]

        monkeypatch.setattr(greedy, "ctc_drafts", spoilt_drafts)

    for seed in range(2):
        drafts(seed)
        found = greedy_search(model, encoded, config(draft=True))
        same(found, plain)
        passes = [sum(h.llm_passes for h in hyps) for hyps in (found, plain)]
        assert passes[0] < passes[1]
        alone = encode_all(model, [speeches[4]])
        same(greedy_search(model, alone, config(draft=True)), plain[4:5])


def test_a_right_draft_takes_one_pass(
    make_arm, encode_all, config, noises, monkeypatch
):
    model = make_arm("encoder")
    encoded = encode_all(model, noises(*SECONDS))
    plain = greedy_search(model, encoded, config())
    monkeypatch.setattr(
        greedy, "ctc_drafts", lambda *_: [Draft(h.token_int) for h in plain]
    )
    passes = []
    model.lm.model.register_forward_hook(lambda *_: passes.append(1))
    found = greedy_search(model, encoded, config(draft=True))
    same(found, plain)
    assert [h.llm_passes for h in found] == [1] * len(plain)
    assert len(passes) == 1


@pytest.mark.parametrize("unit_type", ["llm", "bpe", "char"])
def test_the_draft_is_the_text_of_the_best_path_in_the_llms_tokens(
    make_arm, ctc_units_dirs, unit_type
):
    model = make_arm("encoder", ctc_units=str(ctc_units_dirs[unit_type]))
    units = CTCUnits(ctc_units_dirs[unit_type], model.tokenizer)
    paths = []
    for text in ("HELLO WORLD", "YES", ""):
        path = []
        for unit in units.encode(text) if text else []:
            path += [unit, unit, 0]
        paths.append(path)
    ctc_BSU = torch.zeros(3, max(map(len, paths)) + 1, len(units))
    for log_probs_SU, path in zip(ctc_BSU, paths):
        for s in range(len(log_probs_SU)):
            # after the end of an utterance there may be anything
            log_probs_SU[s, path[s] if s < len(path) else 5] = 9.0
    drafts = ctc_drafts(model, ctc_BSU, torch.tensor([len(path) for path in paths]))
    expected = [model.tokenizer(t).input_ids for t in (" HELLO WORLD", " YES")]
    assert [draft.tokens for draft in drafts] == [*expected, []]


def test_a_best_path_has_neither_repetitions_nor_blanks():
    path = torch.tensor([0, 3, 3, 0, 3, 4, 4, 5, 5])
    ctc_BSU = torch.nn.functional.one_hot(path, 6)[None].float()
    assert collapse(ctc_BSU.argmax(-1), torch.tensor([7])) == [[3, 3, 4]]


@pytest.mark.parametrize(
    "text, rest",
    [
        ([], [1, 2, 3, 4, 5, 6, 7, 8]),
        ([1, 2], [3, 4, 5, 6, 7, 8]),
        ([1, 2, 99], [4, 5, 6, 7]),  # one was another: a few are tried
        ([1, 2, 99, 4], [5, 6, 7, 8]),  # they have met again
        ([1, 2, 4], [5, 6, 7, 8]),  # one was left out
        ([1, 2, 99, 3], [4, 5, 6, 7, 8]),  # one was put in
        ([1, 2, 3, 4, 5, 6, 7, 8], []),
    ],
)
def test_the_draft_continues_from_where_the_text_meets_it(text, rest):
    draft = Draft([1, 2, 3, 4, 5, 6, 7, 8])
    for token in text:
        draft.advance(token)
    assert draft.rest(20) == rest
    assert draft.rest(2) == rest[:2]
    assert draft.rest(0) == draft.rest(-1) == []


def test_a_trained_model_gives_the_same_with_a_draft(
    trained_model, encode_all, config, noises
):
    speeches = noises(*TRAINED_SECONDS)
    encoded = encode_all(trained_model, speeches)
    plain = greedy_search(trained_model, encoded, config())
    found = greedy_search(trained_model, encoded, config(draft=True))
    same(found, plain)
    passes = [sum(h.llm_passes for h in hyps) for hyps in (found, plain)]
    assert passes[0] < 0.9 * passes[1]
    for speech, expected in zip(speeches, found):
        alone = encode_all(trained_model, [speech])
        same(greedy_search(trained_model, alone, config(draft=True)), [expected])
