"""Kind `transformer`: copies of base layers."""

import torch
from transformers import LlamaForCausalLM

from espnet_dus.model.layers.speech_only import find_speech
from espnet_dus.model.upscaling import inserted_layers


def test_each_layer_copies_the_base_layer_below_it_but_for_its_outputs(
    upscaled, tiny_lm
):
    lm = upscaled("transformer", "all", positions=[-1, 0, 2])
    below = [tiny_lm[0].model.layers[i] for i in (0, 0, 2)]
    for layer, copied in zip(inserted_layers(lm).values(), below, strict=True):
        expected = dict(copied.named_parameters())
        for name, parameter in layer.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                assert not parameter.any(), name
            else:
                assert torch.equal(parameter, expected[name]), name


def test_training_a_copy_leaves_the_layer_it_was_copied_from(upscaled, tiny_lm):
    lm = upscaled("transformer", "speech", positions=[1], seed=0)
    for ours, theirs in zip(
        lm.model.layers[1].parameters(), tiny_lm[0].model.layers[1].parameters()
    ):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_scope_all_is_an_ordinary_deeper_llama(upscaled):
    lm = upscaled("transformer", "all", seed=0)
    config = lm.config.to_dict()
    del config["depth_up_scaling"]
    plain = LlamaForCausalLM(type(lm.config)(**config)).eval()
    plain.load_state_dict(lm.state_dict())
    ids = torch.arange(3, 20)[None]
    assert torch.equal(plain(ids).logits, lm(ids).logits)


def test_scope_speech_saves_no_rotary_embedding_of_its_own(upscaled):
    layer = upscaled("transformer", "speech", positions=[0]).model.layers[1]
    assert all(".rotary" not in name for name, _ in layer.named_modules())


@torch.no_grad()
def test_order_of_the_frames_matters_in_scope_speech(upscaled):
    layer = upscaled("transformer", "speech", positions=[0], seed=0).model.layers[1]
    x_BTD = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0))
    speech = find_speech(torch.ones(1, 6, dtype=torch.bool), training=False)
    forward = layer(x_BTD, speech=speech)
    backward = layer(x_BTD.flip(1), speech=speech).flip(1)
    assert not torch.allclose(forward, backward, atol=1e-3)


@torch.no_grad()
def test_a_change_of_attention_backend_reaches_the_copy(upscaled, kind_and_scope):
    lm = upscaled(*kind_and_scope, positions=[0])
    lm.set_attn_implementation("eager")
    attentions = [m for m in lm.model.layers[1].modules() if hasattr(m, "q_proj")]
    assert kind_and_scope == ("e_branchformer", "speech") or len(attentions) == 1
    assert all(m.config._attn_implementation == "eager" for m in attentions)
