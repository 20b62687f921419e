"""Kind `e_branchformer`, scope `all`: the paper's hybrid layer."""

import copy

import pytest
import torch
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoderLayer

from espnet_dus.model.layers.speech_only import find_speech

SPEECH_MODULES = ("norm_mlp", "cgmlp", "depthwise_conv_fusion", "merge_proj")


@pytest.fixture
def make(upscaled, tiny_lm):
    """Return a function that makes one hybrid layer and the call of its LM's layers."""

    def make(seed=0, **layer_conf):
        lm = upscaled("e_branchformer", "all", [0], seed=seed, **layer_conf)
        layer = lm.model.layers[1]

        def call(x_BTD, speech=(), layer=layer):
            """Run the layer; `speech` are the speech positions of all utterances."""
            length = x_BTD.size(1)
            mask_BT = torch.zeros(x_BTD.shape[:2], dtype=torch.bool)
            mask_BT[:, list(speech)] = True
            causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
            positions = torch.arange(length)[None]
            return layer(
                x_BTD,
                attention_mask=causal,
                position_ids=positions,
                position_embeddings=lm.model.rotary_emb(x_BTD, positions),
                speech=find_speech(mask_BT, layer.training),
            )

        return layer, call

    return make


@pytest.fixture
def x_BTD():
    return torch.randn(2, 13, 64, generator=torch.Generator().manual_seed(0))


def test_it_is_espnets_layer_over_copies_of_the_base_layer(make, tiny_lm):
    layer, _ = make(seed=None)
    assert isinstance(layer, EBranchformerEncoderLayer)
    base = tiny_lm[0].model.layers[0]
    slots = {
        "attn": base.self_attn,
        "feed_forward": base.mlp,
        "norm_mha": base.input_layernorm,
        "norm_mlp": base.input_layernorm,
        "norm_ff": base.post_attention_layernorm,
    }
    for slot, copied in slots.items():
        expected = dict(copied.named_parameters())
        for name, parameter in getattr(layer, slot).named_parameters():
            if name in ("o_proj.weight", "down_proj.weight"):
                assert not parameter.any()
            else:
                assert torch.equal(parameter, expected[name]), (slot, name)
                assert parameter is not expected[name]


def test_the_merge_starts_by_taking_the_attention_alone(make):
    layer, _ = make(seed=None)
    eye = torch.eye(64)
    assert torch.equal(layer.merge_proj.weight, torch.cat([eye, 0 * eye], dim=1))
    assert not layer.merge_proj.bias.any()
    assert not any(p.any() for p in layer.depthwise_conv_fusion.parameters())


def test_the_width_of_the_cgmlp_is_the_hidden_size_unless_it_is_given(make):
    assert make(cgmlp_linear_units=None)[0].cgmlp.channel_proj1[0].out_features == 64
    assert make(cgmlp_linear_units=32)[0].cgmlp.channel_proj1[0].out_features == 32


@torch.no_grad()
def test_a_random_merge_preserves_text_but_not_speech(make, x_BTD):
    _, call = make(seed=None, merge_init="random")
    assert torch.equal(call(x_BTD), x_BTD)
    assert (call(x_BTD, range(13)) - x_BTD).abs().mean() > 0.01


@torch.no_grad()
def test_it_computes_the_papers_equations(make, x_BTD):
    layer, call = make()
    x_BTD = x_BTD[:1]
    # the same layer on text gives X' = X + H_G, and from it H_G
    plain = copy.deepcopy(layer)
    plain.feed_forward.down_proj.weight.zero_()
    global_BTD = call(x_BTD, layer=plain) - x_BTD
    local_BTD = layer.cgmlp(layer.norm_mlp(x_BTD), None)
    both_BTC = torch.cat([global_BTD, local_BTD], dim=-1)
    convolved_BTC = layer.depthwise_conv_fusion(both_BTC.mT).mT
    x1_BTD = x_BTD + layer.merge_proj(both_BTC + convolved_BTC)
    expected = x1_BTD + layer.feed_forward(layer.norm_ff(x1_BTD))
    torch.testing.assert_close(call(x_BTD, range(13)), expected, atol=1e-5, rtol=0)
    x1_BTD = x_BTD + global_BTD
    expected = x1_BTD + layer.feed_forward(layer.norm_ff(x1_BTD))
    torch.testing.assert_close(call(x_BTD), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_text_is_what_attention_and_feed_forward_alone_make_of_it(make, x_BTD):
    layer, call = make()
    speech = [2, 3, 4, 7]
    text = [t for t in range(13) if t not in speech]
    before = call(x_BTD, speech)
    for name in SPEECH_MODULES:
        for parameter in getattr(layer, name).parameters():
            parameter += 1.0
    after = call(x_BTD, speech)
    assert torch.equal(after[:, text], before[:, text])
    assert not torch.isclose(after[:, speech], before[:, speech]).all(-1).any()
    torch.testing.assert_close(before[:, text], call(x_BTD)[:, text])


@torch.no_grad()
def test_the_convolutions_see_the_speech_without_gap_in_both_directions(make, x_BTD):
    _, call = make()
    speech = [1, 2, 3, 8, 9, 10]
    before = call(x_BTD, speech)

    def moved(t):
        changed = x_BTD.clone()
        changed[:, t] += 1.0
        differ_T = (call(changed, speech) != before).any(-1).any(0)
        return [place for place in range(t) if differ_T[place]]

    # kernels of 5 and 3 reach three speech frames back, across the text between
    assert moved(10) == [3, 8, 9]
    assert moved(3) == [1, 2]
    assert moved(12) == []  # text behind the speech


@torch.no_grad()
def test_frames_after_an_utterance_do_not_reach_into_it(make, x_BTD):
    _, call = make()
    alone = call(x_BTD[:, :6], range(6))
    with_text = call(x_BTD, range(6))
    torch.testing.assert_close(with_text[:, :6], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_attention_backend_computes_the_same(upscaled, x_BTD):
    lm = upscaled("e_branchformer", "all", seed=0)
    mask = torch.arange(13)[None].expand(2, -1) < 8
    sdpa = lm(inputs_embeds=x_BTD, speech_mask=mask).logits
    lm.set_attn_implementation("eager")
    eager = lm(inputs_embeds=x_BTD, speech_mask=mask).logits
    torch.testing.assert_close(eager, sdpa, atol=1e-4, rtol=0)


def test_in_training_text_alone_gives_every_parameter_a_gradient(make, x_BTD):
    layer, call = make()
    call(x_BTD, layer=layer.train()).sum().backward()
    for name, parameter in layer.named_parameters():
        on_speech = name.partition(".")[0] in SPEECH_MODULES
        assert parameter.grad is not None, name  # DDP would wait for it
        assert bool(parameter.grad.any()) != on_speech, name


@pytest.mark.parametrize(
    "options, message",
    [
        ({"merge_init": "zero"}, "merge_init: 'zero' .*function_preserving, random"),
        ({"cgmlp_conv_kernel": 4}, "cgmlp_conv_kernel: 4 .*odd"),
        ({"merge_conv_kernel": 0}, "merge_conv_kernel: 0 .*odd"),
        ({"cgmlp_linear_units": 33}, "cgmlp_linear_units: 33 .*even"),
        ({"dropout_rate": -0.1}, r"dropout_rate: -0.1 is not in \[0, 1\)"),
        ({"linear_units": 64}, "was a causal .*all: unknown .* linear_units;"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error_that_names_it(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
