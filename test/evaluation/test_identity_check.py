"""Stage 7: the report, its picture, and a difference that does not pass."""

import pytest
import torch

from espnet_dus.evaluation import identity_check
from espnet_dus.evaluation.identity_check import check_identity, run
from espnet_dus.model.layers import KINDS
from espnet_dus.model.stack import describe

TEXT = "the cat sat on the mat and the dog ran after it " * 4


@pytest.fixture
def speech(noises):
    return noises(0.9)[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arm", ["dus", "lora", "full", "frozen"])
def test_each_arm_passes_and_is_reported(
    tiny_options, speech, tmp_path, capsys, arm, dtype, adaptation_conf
):
    conf = adaptation_conf("transformer", "all") if arm == "dus" else {}
    args = tiny_options(
        adaptation=arm,
        adaptation_conf=conf,
        model_conf={"ctc_layer": "base:1"},
        base_lm_conf={"dtype": dtype},
    )
    run(args, TEXT, speech, tmp_path, every_kind=False)
    report = (tmp_path / "report.md").read_text()
    name = "dus transformer all" if arm == "dus" else arm
    (line,) = [row for row in report.splitlines() if row.startswith(f"| {name} ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells.count("equal") == 2 and cells[-1] == "0"
    assert line in capsys.readouterr().out
    assert "![the stack](stack.png)" in report
    assert (tmp_path / "stack.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "stack.png"}


def test_every_kind_and_scope_is_checked_besides_the_options(
    tiny_options, speech, tmp_path
):
    # the statistics for the normalization come later
    args = tiny_options(
        normalize="global_mvn",
        normalize_conf={"stats_file": "not/there/before/stage/10.npz"},
    )
    run(args, TEXT, speech, tmp_path, every_kind=True)
    report = (tmp_path / "report.md").read_text()
    assert "DIFFERENT" not in report
    for kind in KINDS:
        for scope in ("all", "speech"):
            assert report.count(f"| dus {kind} {scope} ") == 1


@pytest.mark.parametrize(
    ("scope", "positions", "model_conf"),
    [
        ("speech", [-1], {"ctc_compression": True, "prompt": "repeat:"}),
        ("all", [0, 2], {"text_retention_weight": 1.0}),
    ],
)
def test_what_one_scope_allows_does_not_stop_the_check_of_others(
    tiny_options, adaptation_conf, speech, tmp_path, scope, positions, model_conf
):
    conf = adaptation_conf("e_branchformer", scope, positions=positions)
    args = tiny_options(adaptation_conf=conf, model_conf=model_conf)
    run(args, TEXT, speech, tmp_path, every_kind=True)
    report = (tmp_path / "report.md").read_text()
    assert report.count("| dus ") == 2 * len(KINDS) and "DIFFERENT" not in report


def perturb(model):
    """Let the first inserted layer be no identity."""
    layer = model.lm.model.layers[1]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1
    return model


@pytest.mark.parametrize("scope", ["all", "speech"])
@torch.no_grad()
def test_a_layer_that_is_not_the_identity_is_found(
    tiny_lm, tiny_model, adaptation_conf, speech, scope
):
    conf = adaptation_conf("transformer", scope)
    model = perturb(tiny_model(adaptation_conf=conf).eval())
    result = check_identity(model, tiny_lm[0], scope, TEXT, speech)
    assert result.speech_equal is False
    assert result.text_equal is (scope == "speech")
    assert result.largest_difference > 0
    assert result.num_text > 20 and result.num_speech > 32


def test_a_difference_is_reported_and_raises(
    tiny_options, speech, tmp_path, monkeypatch
):
    build_model = identity_check.DUSTask.build_model
    monkeypatch.setattr(
        identity_check.DUSTask, "build_model", lambda args: perturb(build_model(args))
    )
    with pytest.raises(
        RuntimeError, match="not the base LM: dus e_branchformer speech"
    ):
        run(tiny_options(), TEXT, speech, tmp_path, every_kind=False)
    report = (tmp_path / "report.md").read_text()
    assert "| DIFFERENT " in report and "| equal " in report  # speech, text


def test_a_merge_at_random_may_change_speech_but_not_text(
    tiny_options, speech, tmp_path, adaptation_conf
):
    conf = adaptation_conf("e_branchformer", "all", merge_init="random")
    run(tiny_options(adaptation_conf=conf), TEXT, speech, tmp_path, every_kind=False)
    report = (tmp_path / "report.md").read_text()
    assert "| DIFFERENT " in report and "| equal " in report  # speech, text


def test_the_options_are_left_as_they_were(tiny_options, speech, tmp_path):
    args = tiny_options(normalize="utterance_mvn")
    before = {name: repr(value) for name, value in vars(args).items()}
    run(args, TEXT, speech, tmp_path, every_kind=True)
    assert {name: repr(value) for name, value in vars(args).items()} == before


def test_a_short_text_is_enough(tiny_options, speech, tmp_path):
    run(tiny_options(), "YES", speech, tmp_path, every_kind=False)
    assert "DIFFERENT" not in (tmp_path / "report.md").read_text()


def test_the_stack_lists_all_parts_from_the_input_up(tiny_model):
    model = tiny_model()
    stack = describe(model)
    assert [part.name for part in stack] == [
        "speech embedder",
        "token embeddings",
        "base layer 0",
        "added e_branchformer",
        "base layer 1",
        "base layer 2",
        "added e_branchformer",
        "CTC head",
        "norm",
        "LM head (the token embeddings)",
    ]
    assert [part.name for part in stack if part.inserted] == [
        "added e_branchformer"
    ] * 2
    for part in stack:
        assert not (part.trained and part.frozen)
    counted = sum(part.trained + part.frozen for part in stack)
    assert counted == sum(p.numel() for p in model.parameters())
