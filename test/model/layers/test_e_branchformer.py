"""Kind `e_branchformer`: ESPnet's layer, and what was changed of it."""

import pytest
import torch
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoderLayer
from transformers.cache_utils import DynamicCache

from espnet_dus.model.layers.e_branchformer import CausalConv1d


@pytest.fixture
def frames():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 13, 64, generator=generator)


def one_layer(upscaled, scope, seed=0, **layer_conf):
    lm = upscaled("e_branchformer", scope, positions=[0], seed=seed, **layer_conf)
    return lm.model.layers[1]


def call(layer, frames, **kwargs):
    """The layer's output; in scope `speech` all positions are speech."""
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    return layer(frames, speech_mask=mask, **kwargs)


@torch.no_grad()
def test_scope_speech_computes_espnets_layer(upscaled, frames):
    layer = one_layer(upscaled, "speech", attention_layer_type="selfattn")
    espnets = layer.layer.layer
    assert type(espnets) is EBranchformerEncoderLayer
    assert torch.equal(call(layer, frames), espnets(frames, None)[0])


@torch.no_grad()
def test_relative_positions_are_the_default_of_scope_speech(upscaled, frames):
    espnets = one_layer(upscaled, "speech").layer.layer
    assert type(espnets.attn).__name__ == "RelPositionMultiHeadedAttention"
    assert espnets.attn.h == 4  # the base LM's number of heads


OPTIONS = [
    {},
    {"use_ffn": False},
    {"macaron_ffn": False},
    {"use_ffn": False, "macaron_ffn": False},
    {"use_linear_after_conv": True},
    {"gate_activation": "swish"},
    {"ffn_activation_type": "relu"},
    {"cgmlp_conv_kernel": 1, "merge_conv_kernel": 1},
    {"attention_heads": 2},
    {"use_sdpa": True},
]


@pytest.mark.parametrize("scope", ["all", "speech"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_every_option_starts_as_the_identity_and_can_leave_it(
    upscaled, frames, scope, options
):
    untrained = one_layer(upscaled, scope, seed=None, **options)
    assert torch.equal(call(untrained, frames), frames)
    trained = one_layer(upscaled, scope, seed=0, **options)
    assert not torch.allclose(call(trained, frames), frames, atol=1e-3)


@pytest.mark.parametrize("scope", ["all", "speech"])
@torch.no_grad()
def test_sdpa_computes_the_same_attention(upscaled, frames, scope):
    plain = call(one_layer(upscaled, scope), frames)
    sdpa = call(one_layer(upscaled, scope, use_sdpa=True), frames)
    torch.testing.assert_close(sdpa, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunks", [[13], [1] * 13, [7, 1, 5], [2, 11]], ids=str)
@pytest.mark.parametrize("kernels", [(5, 3), (1, 1), (31, 7)], ids=str)
@torch.no_grad()
def test_a_sequence_in_chunks_through_the_cache_gives_the_same(
    upscaled, frames, kernels, chunks
):
    layer = one_layer(
        upscaled, "all", cgmlp_conv_kernel=kernels[0], merge_conv_kernel=kernels[1]
    )
    cache = DynamicCache()
    parts = [
        layer(part, past_key_values=cache)
        for part in torch.split(frames, chunks, dim=1)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), layer(frames), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_causal_convolution_sums_its_own_frame_and_those_before():
    centred = torch.nn.Conv1d(2, 2, 3, padding=1, groups=2)
    causal = CausalConv1d.from_centred(centred, 0)
    x_BCT = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(0))
    w, y = centred.weight[:, 0], causal(x_BCT)[0]
    for t in range(5):
        expected = centred.bias.clone()
        for k in range(3):
            if t - 2 + k >= 0:
                expected += w[:, k] * x_BCT[0, :, t - 2 + k]
        torch.testing.assert_close(y[:, t], expected)


@pytest.mark.parametrize(
    "scope, options, message",
    [
        (
            "all",
            {"attention_layer_type": "rel_selfattn"},
            "'rel_selfattn' .*'all'.*selfattn",
        ),
        ("speech", {"attention_layer_type": "fast"}, "attention_layer_type: 'fast'"),
        ("speech", {"attention_heads": 5}, "attention_heads: 5 .* 64"),
        ("speech", {"attention_heads": -4}, "attention_heads: -4 .* 64"),
        ("all", {"cgmlp_conv_kernel": 4}, "cgmlp_conv_kernel: 4 .*odd"),
        ("all", {"merge_conv_kernel": -1}, "merge_conv_kernel: -1 .*odd"),
        ("all", {"linear_units": 0}, "linear_units: 0 .*even"),
        ("all", {"cgmlp_linear_units": 33}, "cgmlp_linear_units: 33 .*even"),
        ("all", {"dropout_rate": 1.5}, r"dropout_rate: 1.5 is not in \[0, 1\)"),
        ("all", {"attention_dropout_rate": -1}, "attention_dropout_rate: -1"),
        ("all", {"ffn_activation_type": "gelu"}, "'gelu' is not known; .*swish"),
        ("all", {"gate_activation": "gelu"}, "'gelu' is not known; .*identity"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error_that_names_it(
    upscaled, scope, options, message
):
    with pytest.raises(ValueError, match=message):
        upscaled("e_branchformer", scope, **options)
