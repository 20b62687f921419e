"""Kind `e_branchformer`, scope `speech`: ESPnet's layer, and what was changed of it."""

import pytest
import torch
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoderLayer

from espnet_dus.model.layers.speech_only import find_speech


@pytest.fixture
def frames():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 13, 64, generator=generator)


def one_layer(upscaled, seed=0, **layer_conf):
    lm = upscaled("e_branchformer", "speech", positions=[0], seed=seed, **layer_conf)
    return lm.model.layers[1]


def call(layer, frames):
    """The layer's output where all positions are speech."""
    mask_BT = torch.ones(frames.shape[:2], dtype=torch.bool)
    return layer(frames, speech=find_speech(mask_BT, layer.training))


@torch.no_grad()
def test_it_computes_espnets_layer(upscaled, frames):
    layer = one_layer(upscaled, attention_layer_type="selfattn")
    espnets = layer.layer.layer
    assert type(espnets) is EBranchformerEncoderLayer
    assert torch.equal(call(layer, frames), espnets(frames, None)[0])


@torch.no_grad()
def test_the_defaults_are_relative_positions_and_the_widths_of_the_base_lm(upscaled):
    espnets = one_layer(upscaled, cgmlp_linear_units=None).layer.layer
    assert type(espnets.attn).__name__ == "RelPositionMultiHeadedAttention"
    assert espnets.attn.h == 4
    assert espnets.cgmlp.channel_proj1[0].out_features == 64


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cgmlp_conv_kernel": 1, "merge_conv_kernel": 1},
        {"attention_heads": 2},
        {"attention_layer_type": "selfattn"},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_option_starts_as_the_identity_and_can_leave_it(
    upscaled, frames, options
):
    untrained = one_layer(upscaled, seed=None, **options)
    assert torch.equal(call(untrained, frames), frames)
    trained = one_layer(upscaled, seed=0, **options)
    assert not torch.allclose(call(trained, frames), frames, atol=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"attention_layer_type": "fast"}, "attention_layer_type: 'fast' .*selfattn"),
        ({"attention_heads": 5}, "attention_heads: 5 .* 64"),
        ({"attention_heads": -4}, "attention_heads: -4 .* 64"),
        ({"cgmlp_conv_kernel": 4}, "cgmlp_conv_kernel: 4 .*odd"),
        ({"merge_conv_kernel": -1}, "merge_conv_kernel: -1 .*odd"),
        ({"linear_units": 0}, "linear_units: 0 .*even"),
        ({"cgmlp_linear_units": 33}, "cgmlp_linear_units: 33 .*even"),
        ({"dropout_rate": 1.5}, r"dropout_rate: 1.5 is not in \[0, 1\)"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error_that_names_it(
    upscaled, options, message
):
    with pytest.raises(ValueError, match=message):
        upscaled("e_branchformer", "speech", **options)
