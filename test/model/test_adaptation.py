"""The arms: what each trains, and that each starts as the base LM."""

import copy

import pytest
import torch
from scaling import BASE_LMS
from transformers import LlamaConfig, LlamaForCausalLM

from espnet_dus.model.adaptation import ARMS, adapt, drop_added_layers

IDS = torch.arange(3, 30)[None]
# rank 1 of LoRA: in + out features of q, k, v, o, gate, up and down, in three layers
PER_RANK = 3 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
CONF = {"dus": {"positions": [0, 2], "cgmlp_linear_units": 32}}


def trained(lm):
    return {name for name, p in lm.named_parameters() if p.requires_grad}


def num_trained(lm):
    return sum(p.numel() for p in lm.parameters() if p.requires_grad)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_every_arm_starts_with_the_logits_of_the_base_lm(tiny_lm, arm, dtype):
    base = tiny_lm[0].to(dtype)
    lm = adapt(copy.deepcopy(base), arm, **CONF.get(arm, {})).eval()
    if arm == "full":  # which is float32, whatever the base LM was loaded in
        base = base.float()
    assert torch.equal(lm(IDS).logits, base(IDS).logits)


def test_full_trains_everything_in_float32(tiny_lm):
    lm = adapt(tiny_lm[0].to(torch.bfloat16), "full")
    assert trained(lm) == {name for name, _ in lm.named_parameters()}
    assert {p.dtype for p in lm.parameters()} == {torch.float32}


def test_frozen_trains_nothing(tiny_lm):
    assert trained(adapt(tiny_lm[0], "frozen")) == set()


def test_dus_trains_the_inserted_layers_in_float32(tiny_lm, kind, adaptation_conf):
    conf = adaptation_conf(kind, "speech", positions=[0, 2])
    lm = adapt(tiny_lm[0].to(torch.bfloat16), "dus", **conf)
    places = {tuple(name.split(".")[:3]) for name in trained(lm)}
    assert places == {("model", "layers", "1"), ("model", "layers", "4")}
    for name, parameter in lm.named_parameters():
        expected = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == expected, name


def test_lora_trains_the_low_rank_updates_in_float32(tiny_lm):
    lm = adapt(tiny_lm[0].to(torch.bfloat16), "lora", rank=2)
    assert trained(lm) == {n for n, _ in lm.named_parameters() if "lora_" in n}
    assert num_trained(lm) == 2 * PER_RANK
    for name, parameter in lm.named_parameters():
        expected = torch.float32 if "lora_" in name else torch.bfloat16
        assert parameter.dtype == expected, name


def test_lora_updates_the_modules_it_is_told_to(tiny_lm):
    lm = adapt(tiny_lm[0], "lora", target_modules=["q_proj", "v_proj"])
    assert {name.split(".")[4] for name in trained(lm)} == {"q_proj", "v_proj"}


def test_a_target_of_lora_that_matches_nothing_is_an_error(tiny_lm):
    with pytest.raises(ValueError, match="target_modules: 'qproj' matches no linear"):
        adapt(tiny_lm[0], "lora", target_modules=["v_proj", "qproj"])


def scale(lm):
    return lm.model.layers[0].self_attn.q_proj.scaling["default"]


def test_lora_is_scaled_by_alpha_over_rank_and_by_two_unless_told(tiny_lm):
    assert scale(adapt(copy.deepcopy(tiny_lm[0]), "lora", rank=8)) == 2.0
    assert scale(adapt(tiny_lm[0], "lora", rank=8, alpha=4.0)) == 0.5


@pytest.mark.parametrize("size, rank", [("360m", 144), ("1.7b", 356)])
def test_lora_matches_the_papers_added_layers(size, rank):
    with torch.device("meta"):
        config = LlamaConfig(vocab_size=49152, **BASE_LMS[size])
        base = LlamaForCausalLM(config)
    added = num_trained(adapt(copy.deepcopy(base), "dus", kind="transformer"))
    lm = adapt(base, "lora", rank="match_added_layers")
    assert lm.model.layers[0].self_attn.q_proj.r["default"] == rank
    assert scale(lm) == 2.0
    assert num_trained(lm) <= added < num_trained(lm) * (rank + 1) / rank


@pytest.mark.parametrize(
    "arm, conf, message",
    [
        ("adapter", {}, "adaptation: 'adapter' is not one of dus, lora, full, frozen"),
        ("lora", {"r": 8}, "lora: unknown option.* r; expected some of rank, alpha"),
        ("lora", {"rank": 0}, "rank 0: expected a number .* or match_added_layers"),
        ("lora", {"rank": "match"}, "rank match: expected a number"),
        ("full", {"rank": 8}, "full: unknown option.* rank; expected some of none"),
        (
            "frozen",
            {"kind": "x"},
            "frozen: unknown option.* kind; expected some of none",
        ),
        (
            "dus",
            {"rank": 8},
            "kind e_branchformer, .*: unknown option.* rank; expected",
        ),
    ],
)
def test_an_unknown_arm_or_option_is_an_error_that_names_it(
    tiny_lm, arm, conf, message
):
    with pytest.raises(ValueError, match=message):
        adapt(tiny_lm[0], arm, **conf)


@pytest.mark.parametrize("arm", ["dus", "lora", "frozen"])
@torch.no_grad()
def test_the_base_lm_is_inside_an_adapted_one(tiny_lm, randomise, arm):
    conf = {"dus": {"scope": "all", **CONF["dus"]}}.get(arm, {})
    lm = randomise(adapt(copy.deepcopy(tiny_lm[0]), arm, **conf)).eval()
    before = lm(IDS).logits
    options = dict(max_new_tokens=4, do_sample=False, pad_token_id=0)
    wanted = tiny_lm[0].generate(IDS, **options)
    with drop_added_layers(lm) as base:
        assert torch.equal(base(IDS).logits, tiny_lm[0](IDS).logits)
        assert torch.equal(base.generate(IDS, **options), wanted)
    assert torch.equal(lm(IDS).logits, before)
    assert before.equal(tiny_lm[0](IDS).logits) == (arm == "frozen")


def test_full_fine_tuning_leaves_no_base_lm(tiny_lm):
    lm = adapt(tiny_lm[0], "full")
    with pytest.raises(ValueError, match="overwritten the base LM"), drop_added_layers(
        lm
    ):
        pass
