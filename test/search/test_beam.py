"""Beam search, alone and joint with CTC: against exhaustive search, and in batches."""

import itertools
import math

import pytest
import torch

from espnet_dus.search.beam import beam_search
from espnet_dus.search.draft import best_paths
from espnet_dus.search.encoding import encode
from espnet_dus.search.greedy import greedy_search

SECONDS = (1.3, 0.3, 0.98, 0.5)


@torch.no_grad()
def lm_log_prob(model, speech, ids, with_eos):
    """Score a text by one pass over the whole, without search and cache."""
    speech_BSD, lengths = model.embed_speech(
        torch.from_numpy(speech)[None], torch.tensor([len(speech)])
    )
    text = torch.tensor([[*ids, model.eos_id]])[:, : len(ids) + with_eos]
    seq = model.join_text(speech_BSD, lengths, text, torch.tensor([text.size(1)]))
    hidden_BTD, _ = model.run_lm(seq)
    first = int(lengths) + len(model.prompt_ids) - 1
    logits = model.lm.lm_head(hidden_BTD)[0, first : first + text.size(1)]
    return logits.log_softmax(-1).gather(1, text[0][:, None]).sum().item()


def ctc_log_probs(ctc_SU):
    """Add up all paths: log-probability of each label sequence, and of each prefix."""
    whole, prefix = {}, {}
    for path in itertools.product(range(ctc_SU.size(1)), repeat=len(ctc_SU)):
        score = sum(ctc_SU[s][u].item() for s, u in enumerate(path))
        (labels,) = best_paths(
            torch.nn.functional.one_hot(torch.tensor([path]), ctc_SU.size(1)).float(),
            torch.tensor([len(path)]),
        )
        whole.setdefault(tuple(labels), []).append(score)
        for n in range(len(labels) + 1):
            prefix.setdefault(tuple(labels[:n]), []).append(score)

    def add(table):
        return {k: torch.tensor(v).logsumexp(0).item() for k, v in table.items()}

    return add(whole), add(prefix)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_joint_search_finds_what_an_exhaustive_search_finds(
    make_arm, encode_all, config, noises, weight
):
    model = make_arm("encoder")
    (speech,) = noises(0.4)
    # a few units, so that all can be tried
    keep = 7
    model.ctc_units.units = model.ctc_units.units[:keep]
    linear = model.ctc.ctc.ctc_lo
    linear.weight.data, linear.bias.data = linear.weight[:keep], linear.bias[:keep]
    encoded = encode_all(model, [speech])
    assert encoded.lengths_B.tolist() == [3]
    whole, prefix = ctc_log_probs(encoded.ctc_BSU[0])
    tokens = model.tokenizer.convert_tokens_to_ids(model.ctc_units.units)

    expected = {}
    for n in range(3):  # at most two tokens; two of them end without EOS
        for units in itertools.product(range(2, keep), repeat=n):
            ids = tuple(tokens[u] for u in units)
            ctc = (prefix if n == 2 else whole).get(units, -math.inf)
            lm = lm_log_prob(model, speech, ids, with_eos=n < 2)
            expected[ids] = (1 - weight) * lm + weight * ctc + 0.25 * (n + (n < 2))
    best = sorted(expected, key=lambda ids: -expected[ids])[:8]

    options = config(
        beam_size=10, nbest=8, ctc_weight=weight, penalty=0.25, maxlenratio=0.5
    )
    (found,) = beam_search(model, encoded, options)
    assert [tuple(h.token_int) for h in found] == best
    for hypothesis, ids in zip(found, best):
        assert hypothesis.score == pytest.approx(expected[ids], abs=1e-3)
        assert hypothesis.guards == (["length"] if len(ids) == 2 else [])


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_scores_are_those_of_the_whole_text(
    trained_model, encode_all, config, noises, weight
):
    speeches = noises(1.3, 1.6, 0.9, 1.4)
    encoded = encode_all(trained_model, speeches)
    options = config(beam_size=4, nbest=4, ctc_weight=weight)
    results = beam_search(trained_model, encoded, options)
    num_ended = 0
    for speech, ctc_SU, length, found in zip(
        speeches, encoded.ctc_BSU, encoded.lengths_B, results
    ):
        assert len({tuple(h.token_int) for h in found}) == len(found) == 4
        assert [h.score for h in found] == sorted((h.score for h in found))[::-1]
        for h in found:
            if weight and h.guards:
                continue  # to CTC it is a beginning, see above
            num_ended += not h.guards
            lm = lm_log_prob(trained_model, speech, h.token_int, not h.guards)
            units = trained_model.ctc_units.ids
            labels = [units.get(token) for token in h.token]
            ctc = 0.0
            if weight:
                ctc = -torch.nn.functional.ctc_loss(
                    ctc_SU[:length, None],
                    torch.tensor([labels]),
                    length[None],
                    torch.tensor([len(labels)]),
                    reduction="sum",
                ).item()
            score = (1 - weight) * lm + weight * ctc
            assert h.score == pytest.approx(score, abs=1e-2)
    assert num_ended > 4 or not weight


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_batch_gives_what_each_utterance_gives_alone(
    make_arm, encode_all, config, noises, arm, weight
):
    model, speeches = make_arm(arm), noises(*SECONDS)
    options = config(beam_size=3, nbest=2, ctc_weight=weight)
    together = beam_search(model, encode_all(model, speeches), options)
    assert len({tuple(h.token_int) for found in together for h in found}) > 3
    for speech, expected in zip(speeches, together):
        (found,) = beam_search(model, encode_all(model, [speech]), options)
        assert [h.token_int for h in found] == [h.token_int for h in expected]
        assert [h.text for h in found] == [h.text for h in expected]
        for one, other in zip(found, expected):
            assert one.score == pytest.approx(other.score, abs=1e-3)
            assert one.confidence == pytest.approx(other.confidence, abs=1e-3)
            assert one.guards == other.guards


def test_a_beam_of_more_is_no_worse_than_greedy(
    trained_model, encode_all, config, noises
):
    encoded = encode_all(trained_model, noises(1.3, 1.6, 0.9, 1.4))
    greedy = greedy_search(trained_model, encoded, config())
    results = beam_search(trained_model, encoded, config(beam_size=6))
    for expected, (found,) in zip(greedy, results):
        assert found.score >= expected.score - 1e-3


@pytest.mark.parametrize("unit_type", ["bpe", "char"])
def test_other_units_score_the_complete_hypotheses(
    make_arm, ctc_units_dirs, encode_all, config, noises, unit_type
):
    model = make_arm("encoder", ctc_units=str(ctc_units_dirs[unit_type]))
    encoded = encode_all(model, noises(*SECONDS))
    weight, reward = 0.25, 0.5
    plain = beam_search(model, encoded, config(beam_size=4, nbest=4))
    rescored = beam_search(
        model,
        encoded,
        config(beam_size=4, nbest=4, ctc_weight=weight, word_reward=reward),
    )
    for ctc_SU, length, before, after in zip(
        encoded.ctc_BSU, encoded.lengths_B, plain, rescored
    ):
        expected = {}
        for h in before:
            units = model.ctc_units.encode(h.text)
            loss = torch.nn.functional.ctc_loss(
                ctc_SU[:length, None],
                torch.tensor([units], dtype=torch.long),
                length[None],
                torch.tensor([len(units)]),
                reduction="sum",
            )
            ctc = max(-loss.item(), -1e10)
            score = (1 - weight) * h.score + weight * ctc
            expected[tuple(h.token_int)] = score + reward * len(h.text.split())
        assert {tuple(h.token_int) for h in after} == set(expected)
        assert [h.score for h in after] == sorted((h.score for h in after))[::-1]
        for h in after:
            assert h.score == pytest.approx(expected[tuple(h.token_int)], rel=1e-5)


def test_ctc_of_a_model_without_a_head_is_an_error(tiny_model, noises):
    model = tiny_model(
        ctc_units=None,
        adaptation="frozen",
        adaptation_conf={},
        model_conf={"ctc_weight": 0.0},
    ).eval()
    (speech,) = noises(0.5)
    with pytest.raises(ValueError, match="ctc_weight.*need a CTC head"):
        encode(model, torch.from_numpy(speech)[None], torch.tensor([len(speech)]), True)
