"""CTC units and head."""

import json

import pytest
import torch

from espnet_dus.data.ctc_units import (
    BLANK,
    UNIT_TYPES,
    UNKNOWN,
    CTCUnits,
    llm_text,
)
from espnet_dus.model.ctc_head import CTCHead
from espnet_dus.model.espnet_model import word_errors
from espnet_dus.model.upscaling import ctc_layer_index, is_above_base_layer


@pytest.fixture(params=UNIT_TYPES)
def units(request, ctc_units_dirs, tiny_lm):
    return CTCUnits(ctc_units_dirs[request.param], tiny_lm[1])


# -- units -----------------------------------------------------------------------------


def test_a_transcript_survives_the_way_to_ids_and_back(units, transcripts):
    for text in transcripts:
        ids = units.encode(text)
        assert BLANK not in ids and UNKNOWN not in ids
        assert max(ids) < len(units)
        assert units.decode(ids) == text


def test_a_unit_that_the_training_text_lacks_is_the_unknown(units):
    assert UNKNOWN in units.encode("YES zzz")
    assert BLANK not in units.encode("YES zzz")


def test_blank_and_unknown_have_no_text(units):
    yes = units.encode("YES")
    assert units.decode([BLANK, *yes, UNKNOWN, BLANK]) == "YES"
    assert units.decode([]) == ""


def test_the_blank_is_the_first_unit_and_units_are_distinct(units):
    assert units.units[:2] == ["<blank>", "<unk>"]
    assert len(set(units.units)) == len(units) == len(units.units)


def test_llm_units_are_the_base_lms_own_tokens(ctc_units_dirs, tiny_lm):
    units, tokenizer = CTCUnits(ctc_units_dirs["llm"], tiny_lm[1]), tiny_lm[1]
    tokens = [units.units[i] for i in units.encode("HOW ARE YOU")]
    assert tokenizer.convert_tokens_to_ids(tokens) == tokenizer.encode(
        llm_text("HOW ARE YOU"), add_special_tokens=False
    )


def test_making_the_units_twice_gives_the_same_files(tmp_path, units, transcripts):
    for name in ("one", "two"):
        again = CTCUnits.make(
            tmp_path / name, units.type, transcripts * 9, units.tokenizer, nbpe=22
        )
        assert again.units == units.units
        files = {"units.json"} | ({"bpe.model"} if units.type == "bpe" else set())
        assert {path.name for path in (tmp_path / name).iterdir()} == files


def test_units_of_other_writing_systems_survive_the_file(tmp_path):
    text = "\u65e5\u672c \u00e4"
    units = CTCUnits.make(tmp_path, "char", [text], None)
    assert units.decode(CTCUnits(tmp_path).encode(text)) == text


@pytest.mark.parametrize(
    "unit_type, texts, nbpe, message",
    [
        ("word", ["A"], 9, "ctc_token_type: 'word' is not one of llm, bpe, char"),
        ("char", ["", ""], 9, "no training text"),
        ("bpe", ["A B"], 500, "could not make nbpe = 500 units from the training text"),
    ],
)
def test_units_that_cannot_be_made_are_an_error(
    tmp_path, unit_type, texts, nbpe, message
):
    with pytest.raises(ValueError, match=message):
        CTCUnits.make(tmp_path, unit_type, texts, None, nbpe)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_without_units_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}/units.json is missing; stage 5"):
        CTCUnits(tmp_path)


# -- the head --------------------------------------------------------------------------


def test_the_loss_is_torchs_ctc_loss_and_comes_with_its_units():
    torch.manual_seed(0)
    head = CTCHead(8, 6, has_norm=True, dropout_rate=0.0)
    x_BSD, lengths_B = torch.randn(2, 9, 8), torch.tensor([9, 6])
    units_BN = torch.tensor([[2, 3, 3, 5], [4, 2, -1, -1]])
    unit_lengths_B = torch.tensor([4, 2])
    total, count = head(x_BSD, lengths_B, units_BN, unit_lengths_B)
    summed = 0.0
    for b in range(2):
        length, num_units = lengths_B[b], unit_lengths_B[b]
        log_probs = head.ctc.ctc_lo(head.norm(x_BSD[b, :length])).log_softmax(-1)
        summed += torch.nn.functional.ctc_loss(
            log_probs[:, None],
            units_BN[b : b + 1, :num_units],
            length[None],
            num_units[None],
            blank=BLANK,
            reduction="sum",
        )
    torch.testing.assert_close(total, summed)
    assert count == 6


def test_llm_units_start_at_the_llms_embeddings_and_the_blank_at_a_space(
    ctc_units_dirs, tiny_lm
):
    lm, tokenizer = tiny_lm
    units = CTCUnits(ctc_units_dirs["llm"], tokenizer)
    head = CTCHead(lm.config.hidden_size, len(units), has_norm=False)
    before_UD = head.ctc.ctc_lo.weight.clone()
    head.start_at_embeddings(units, lm)
    weight_UD = head.ctc.ctc_lo.weight
    embeddings_VD = lm.get_input_embeddings().weight
    for unit in (UNKNOWN + 1, len(units) - 1):
        token = tokenizer.convert_tokens_to_ids(units.units[unit])
        assert torch.equal(weight_UD[unit], embeddings_VD[token])
    space = tokenizer(" ", add_special_tokens=False).input_ids[0]
    assert torch.equal(weight_UD[BLANK], embeddings_VD[space])
    assert torch.equal(weight_UD[UNKNOWN], before_UD[UNKNOWN])


def test_greedy_collapses_repeats_then_drops_blanks_and_padding():
    head = CTCHead(8, 6, has_norm=False, dropout_rate=0.0)
    with torch.no_grad():
        head.ctc.ctc_lo.weight.copy_(torch.eye(6, 8))
        head.ctc.ctc_lo.bias.zero_()
    paths = torch.tensor([[0, 2, 2, 0, 2, 3, 3, 0], [5, 5, 4, 4, 5, 1, 1, 1]])
    x_BSD = torch.nn.functional.one_hot(paths, 8).float()
    assert head.greedy(x_BSD, torch.tensor([8, 5])) == [[2, 2, 3], [5, 4, 5]]


# -- which layer -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "ctc_layer, place",
    [
        ("inserted:0", 0),
        ("inserted:1", 2),
        ("inserted:-1", 4),
        ("base:0", 1),
        ("base:1", 3),
        ("base:-1", 5),
    ],
)
def test_the_ctc_layer_is_found_among_inserted_and_base_layers(
    upscaled, ctc_layer, place
):
    lm = upscaled("transformer", "all", positions=[-1, 0, 1])
    assert ctc_layer_index(lm, ctc_layer) == place


@pytest.mark.parametrize(
    "ctc_layer",
    ["inserted:3", "inserted:-4", "base:3", "inserted", "inserted:x", "layer:1", ""],
)
def test_a_ctc_layer_that_does_not_exist_is_an_error_that_names_it(upscaled, ctc_layer):
    lm = upscaled("transformer", "all", positions=[-1, 0, 1])
    with pytest.raises(
        ValueError, match=f"ctc_layer: '{ctc_layer}' names no layer; .*K below 3"
    ):
        ctc_layer_index(lm, ctc_layer)


@pytest.mark.parametrize(
    "ctc_layer, above",
    [("inserted:0", False), ("inserted:1", False), ("inserted:2", True)]
    + [("base:0", True), ("inserted:-1", True)],
)
def test_a_head_has_a_norm_only_where_base_layers_have_written(
    upscaled, ctc_layer, above
):
    lm = upscaled("transformer", "all", positions=[-1, -1, 0])
    assert is_above_base_layer(lm, ctc_layer) == above
    head = CTCHead(lm.config.hidden_size, 6, has_norm=above)
    x_D = torch.randn(lm.config.hidden_size)
    same = torch.equal(head.norm(x_D), x_D)
    assert same != above


def test_an_arm_that_inserts_nothing_has_base_layers_only(tiny_lm):
    assert ctc_layer_index(tiny_lm[0], "base:2") == 2
    with pytest.raises(ValueError, match="inserted:K with K below 0"):
        ctc_layer_index(tiny_lm[0], "inserted:-1")


# -- word errors -----------------------------------------------------------------------


def test_the_loss_is_summed_over_what_ctc_can_place():
    torch.manual_seed(0)
    head, x_BSD = CTCHead(8, 10, has_norm=False).eval(), torch.randn(4, 6, 8)
    # placed; 6 equal units need 11 positions; 5 units in 4 positions; no unit
    units_BN = torch.tensor([[2, 3, 3], [4, 4, 4], [2, 3, 4], [-1, -1, -1]]).repeat(
        1, 2
    )
    units_BN[0, 3:] = -1
    lengths_B, unit_lengths_B = torch.tensor([6, 6, 4, 6]), torch.tensor([3, 6, 5, 0])
    total, count = head(x_BSD, lengths_B, units_BN, unit_lengths_B)
    log_probs = head.ctc.log_softmax(x_BSD[:1]).transpose(0, 1)
    expected = torch.nn.functional.ctc_loss(
        log_probs, units_BN[:1, :3], (6,), (3,), reduction="sum"
    )
    torch.testing.assert_close(total, expected)
    assert count == 3
    total.backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_word_errors_are_counted_over_all_utterances():
    references = ["A B C", "D", "E F", ""]
    assert word_errors(references, ["A X C", "", "E F G", "Y"]) == (3, 6)
    assert word_errors(["", " "], ["A", ""]) == (0, 0)


def test_units_json_says_type_and_units(ctc_units_dirs, transcripts):
    content = json.loads((ctc_units_dirs["char"] / "units.json").read_text())
    assert content["type"] == "char"
    letters = set("".join(transcripts)) - {" "}
    assert content["units"][2:] == sorted(letters | {"<space>"})
