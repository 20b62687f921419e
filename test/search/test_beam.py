"""Beam search, alone and joint with CTC: against exhaustive search, and in batches."""

import itertools
import math

import pytest
import torch

from espnet_dus.data.ctc_units import UNKNOWN
from espnet_dus.model.ctc_head import collapse
from espnet_dus.search.beam import beam_search
from espnet_dus.search.encoding import encode
from espnet_dus.search.greedy import greedy_search

SECONDS = (1.3, 0.3, 0.98, 0.5)


@pytest.fixture
def lm_log_prob(full_logits):
    """Return a function that scores a text by one pass over the whole."""

    def log_prob(model, speech, ids, with_eos):
        ids = [*ids, model.eos_id][: len(ids) + with_eos]
        scores = full_logits(model, speech, ids).log_softmax(-1)
        return scores.gather(1, torch.tensor(ids)[:, None]).sum().item()

    return log_prob


def ctc_log_probs(ctc_SU):
    """Add up all paths: log-probability of each label sequence, and of each prefix."""
    whole, prefix = {}, {}
    for path in itertools.product(range(ctc_SU.size(1)), repeat=len(ctc_SU)):
        score = sum(ctc_SU[s][u].item() for s, u in enumerate(path))
        (labels,) = collapse(torch.tensor([path]), torch.tensor([len(path)]))
        whole.setdefault(tuple(labels), []).append(score)
        for n in range(len(labels) + 1):
            prefix.setdefault(tuple(labels[:n]), []).append(score)

    def add(table):
        return {k: torch.tensor(v).logsumexp(0).item() for k, v in table.items()}

    return add(whole), add(prefix)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_joint_search_finds_what_an_exhaustive_search_finds(
    make_arm, encode_all, config, noises, weight, lm_log_prob
):
    model = make_arm("encoder")
    (speech,) = noises(0.4)
    # a few units, so that all can be tried
    keep = 7
    model.ctc_units.units = model.ctc_units.units[:keep]
    linear = model.ctc.ctc.ctc_lo
    linear.weight.data, linear.bias.data = linear.weight[:keep], linear.bias[:keep]
    linear.bias.data[UNKNOWN] = -1e3  # nothing but these units was said
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


@pytest.fixture
def biased_head():
    """Return a function that makes an LM head with fixed log-probabilities."""

    def make(model, **bias):
        head = torch.nn.Linear(model.lm.config.hidden_size, len(model.tokenizer))
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, -20.0)
        for token, value in bias.items():
            head.bias.data[int(token.removeprefix("t"))] = value
        return head

    return make


@pytest.mark.parametrize("weight", [0.002, 0.1, 0.5])
def test_a_token_that_is_not_a_unit_is_scored_as_unknown(
    make_arm, encode_all, config, noises, weight, biased_head
):
    model = make_arm("encoder")
    units = model.ctc_units
    known = set(model.tokenizer.convert_tokens_to_ids(units.units[2:]))
    other = next(i for i in range(10, 300) if i not in known | {model.eos_id})
    (unit,) = model.tokenizer.convert_tokens_to_ids(units.units[5:6])
    (encoded,) = [encode_all(model, noises(0.9))]
    # CTC hears <unk>, then unit 5, each at two positions, and blanks around them
    path = torch.zeros(encoded.ctc_BSU.size(1), dtype=torch.long)
    path[[2, 3]], path[[5, 6]] = UNKNOWN, 5
    ctc_SU = torch.full((len(path), len(units)), -12.0)
    ctc_SU[torch.arange(len(path)), path] = 0.0
    ctc_SU = ctc_SU.log_softmax(-1)
    encoded = encoded._replace(ctc_BSU=ctc_SU[None])
    model.lm.lm_head = biased_head(
        model, **{f"t{other}": 0.0, f"t{unit}": -0.1, f"t{model.eos_id}": -0.2}
    )
    options = config(beam_size=4, nbest=4, ctc_weight=weight, maxlenratio=0.9)
    (found,) = beam_search(model, encoded, options)
    lm_other, lm_unit, lm_eos = torch.tensor([0.0, -0.1, -0.2]).log_softmax(-1).tolist()
    expected = {}
    for ids, labels, lm in (
        ((other, unit), [UNKNOWN, 5], lm_other + lm_unit + lm_eos),
        ((other,), [UNKNOWN], lm_other + lm_eos),
        ((), [], lm_eos),
    ):
        ctc = -torch.nn.functional.ctc_loss(
            ctc_SU[:, None],
            torch.tensor([labels], dtype=torch.long),
            torch.tensor([len(ctc_SU)]),
            torch.tensor([len(labels)]),
            reduction="sum",
        ).item()
        expected[ids] = (1 - weight) * lm + weight * ctc
    scores = {tuple(h.token_int): h.score for h in found}
    assert set(scores) & set(expected)
    for ids in set(scores) & set(expected):
        assert scores[ids] == pytest.approx(expected[ids], abs=1e-3)
    if weight == 0.5:
        assert found[0].token_int == [other, unit]


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_scores_are_those_of_the_whole_text(
    trained_model, encode_all, config, noises, weight, lm_log_prob
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
    make_arm, encode_all, config, noises, arm, weight, lm_log_prob
):
    model, speeches = make_arm(arm), noises(*SECONDS)
    options = config(beam_size=3, nbest=2, ctc_weight=weight)
    together = beam_search(model, encode_all(model, speeches), options)
    assert len({tuple(h.token_int) for found in together for h in found}) > 2
    for speech, expected in zip(speeches, together):
        (found,) = beam_search(model, encode_all(model, [speech]), options)
        assert [h.token_int for h in found] == [h.token_int for h in expected]
        assert [h.text for h in found] == [h.text for h in expected]
        for one, other in zip(found, expected):
            assert one.score == pytest.approx(other.score, abs=1e-3)
            assert one.confidence == pytest.approx(other.confidence, abs=1e-3)
            assert one.guards == other.guards
            if not weight:  # the cache has followed its beam
                lm = lm_log_prob(model, speech, one.token_int, not one.guards)
                assert one.score == pytest.approx(lm, abs=1e-3)


def test_tokens_of_the_same_score_are_told_apart(make_arm, encode_all, config, noises):
    model = make_arm("encoder")
    model.lm.lm_head.weight.data.zero_()  # every token is as good as any other
    encoded = encode_all(model, noises(0.5))
    (found,) = beam_search(model, encoded, config(beam_size=3, nbest=3))
    assert len({tuple(h.token_int) for h in found}) == 3
    for h in found:
        num_scored = len(h.token_int) + (not h.guards)
        chance = -math.log(len(model.tokenizer)) * num_scored
        assert h.score == pytest.approx(chance, abs=1e-3)


@pytest.mark.parametrize("arm", ["encoder", "transformer-speech", "transformer-all"])
def test_the_prompt_may_be_empty(
    make_arm, encode_all, config, noises, arm, lm_log_prob
):
    model, speeches = make_arm(arm), noises(0.98, 0.2)
    model.prompt_ids = []
    encoded = encode_all(model, speeches)
    assert int(encoded.lengths_B[1]) == 1  # there is nothing before its last position
    results = beam_search(model, encoded, config(beam_size=3, nbest=2))
    for speech, found in zip(speeches, results):
        for h in found:
            lm = lm_log_prob(model, speech, h.token_int, not h.guards)
            assert h.score == pytest.approx(lm, abs=1e-3)


def test_the_speech_is_run_through_the_llm_once(make_arm, encode_all, config, noises):
    model = make_arm("encoder")
    encoded = encode_all(model, noises(0.98, 0.3))
    rows, embed = [], model.lm.model.layers[-1]
    embed.register_forward_hook(lambda _, args, out: rows.append(out.shape[:2]))
    beam_search(model, encoded, config(beam_size=3))
    positions = int(encoded.lengths_B.max()) + len(model.prompt_ids)
    assert rows[0] == (2, positions - 1)
    assert set(rows[1:]) == {(2 * 3, 1)}


def test_a_beam_of_more_is_not_worse_than_greedy(
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
