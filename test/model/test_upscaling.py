"""Depth up-scaling keeps its promises, for every kind and scope."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from espnet_dus.model.upscaling import inserted_layers, upscale


@pytest.fixture
def ids():
    return torch.randint(3, 250, (2, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def spoken():
    """Three sequences [speech][text]: embeddings, lengths, speech lengths."""
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(3, 16, 64, generator=generator),
        torch.tensor([16, 9, 13]),
        torch.tensor([11, 6, 12]),
    )


def batch(spoken, side):
    """Pad sequences: inputs, attention mask, speech mask, first places."""
    inputs_BTD, lengths_B, speech_B = spoken
    total = inputs_BTD.size(1)
    starts_B = total - lengths_B if side == "left" else torch.zeros_like(lengths_B)
    place_BT = torch.arange(total)[None] - starts_B[:, None]
    real_BT = (place_BT >= 0) & (place_BT < lengths_B[:, None])
    padded = torch.zeros_like(inputs_BTD)
    for b, (start, length) in enumerate(zip(starts_B, lengths_B)):
        padded[b, start : start + length] = inputs_BTD[b, :length]
    return padded, real_BT.long(), real_BT & (place_BT < speech_B[:, None]), starts_B


def alone(spoken, b):
    """One sequence without padding: inputs, speech mask."""
    inputs_BTD, lengths_B, speech_B = spoken
    length = int(lengths_B[b])
    return inputs_BTD[b : b + 1, :length], torch.arange(length)[None] < speech_B[b]


# -- the identity ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_untrained_layers_leave_text_and_speech_logits_of_the_base_lm(
    tiny_lm, upscaled, kind_and_scope, dtype, ids, spoken
):
    base = tiny_lm[0].to(dtype)
    lm = upscaled(*kind_and_scope)
    assert len(lm.model.layers) == 3 + 4
    assert torch.equal(lm(input_ids=ids).logits, base(input_ids=ids).logits)
    inputs, attention, speech, _ = batch(spoken, "right")
    ours = lm(
        inputs_embeds=inputs.to(dtype), attention_mask=attention, speech_mask=speech
    )
    theirs = base(inputs_embeds=inputs.to(dtype), attention_mask=attention)
    assert ours.logits.dtype == dtype
    assert torch.equal(ours.logits, theirs.logits)


@torch.no_grad()
def test_trained_layers_change_the_logits_of_speech(
    tiny_lm, upscaled, kind_and_scope, spoken
):
    inputs, speech = alone(spoken, 0)
    ours = upscaled(*kind_and_scope, seed=0)(inputs_embeds=inputs, speech_mask=speech)
    theirs = tiny_lm[0](inputs_embeds=inputs)
    # on the text that follows the speech too: there the transcript is predicted
    differ_T = (ours.logits - theirs.logits).abs().amax(-1)[0] > 1e-3
    assert differ_T.all()


@pytest.mark.parametrize("seed", range(2))
@torch.no_grad()
def test_scope_speech_leaves_text_alone_in_any_training_state(
    tiny_lm, upscaled, kind, ids, seed
):
    base, lm = tiny_lm[0], upscaled(kind, "speech", seed=seed)
    padding = torch.ones_like(ids)
    padding[1, 10:] = 0
    for inputs in ({}, {"attention_mask": padding}):
        theirs = base(input_ids=ids, **inputs).logits
        assert torch.equal(lm(input_ids=ids, **inputs).logits, theirs)
        no_speech = torch.zeros_like(ids, dtype=torch.bool)
        ours = lm(input_ids=ids, speech_mask=no_speech, **inputs).logits
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_scope_speech_does_not_change_text_next_to_speech_in_the_batch(
    tiny_lm, upscaled, kind, spoken
):
    inputs, speech = alone(spoken, 0)
    inputs = torch.cat([inputs, inputs.flip(1)])
    mask = torch.cat([speech, torch.zeros_like(speech)])
    ours = upscaled(kind, "speech", seed=0)(inputs_embeds=inputs, speech_mask=mask)
    theirs = tiny_lm[0](inputs_embeds=inputs)
    assert torch.equal(ours.logits[1], theirs.logits[1])
    assert not torch.allclose(ours.logits[0], theirs.logits[0], atol=1e-3)


@torch.no_grad()
def test_scope_speech_generates_the_base_lms_text_in_any_training_state(
    tiny_lm, upscaled, kind, ids
):
    options = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=[])
    theirs = tiny_lm[0].generate(input_ids=ids, **options)
    ours = upscaled(kind, "speech", seed=0).generate(input_ids=ids, **options)
    assert ours.tolist() == theirs.tolist()


# -- what sees what --------------------------------------------------------------------


def changes(lm, spoken):
    """For each place t: (t, bool (T,) of the places whose logits change with it)."""
    inputs, speech = alone(spoken, 0)
    before = lm(inputs_embeds=inputs, speech_mask=speech).logits
    for t in range(inputs.size(1)):
        changed = inputs.clone()
        changed[:, t] = torch.randn(64, generator=torch.Generator().manual_seed(t))
        after = lm(inputs_embeds=changed, speech_mask=speech).logits
        yield t, (after[0] != before[0]).any(-1)


@torch.no_grad()
def test_copies_in_scope_all_are_causal(upscaled, spoken):
    for t, differ_T in changes(upscaled("transformer", "all", seed=0), spoken):
        assert not differ_T[:t].any() and differ_T[t:].all()


@torch.no_grad()
def test_text_changes_what_follows_it_alone(upscaled, kind_and_scope, spoken):
    num_speech = int(spoken[2][0])
    for t, differ_T in changes(upscaled(*kind_and_scope, seed=0), spoken):
        if t >= num_speech:
            assert not differ_T[:t].any() and differ_T[t:].all()


@torch.no_grad()
def test_scope_speech_sees_speech_in_both_directions(upscaled, kind, spoken):
    num_speech = int(spoken[2][0])
    for t, differ_T in changes(upscaled(kind, "speech", seed=0), spoken):
        assert t >= num_speech or differ_T.all()


# -- padding, cache, generation --------------------------------------------------------


PLACED = [
    ("transformer", "all", (-1, 1, 1, 2)),
    ("transformer", "speech", (-1, 1, 1, 2)),
    ("e_branchformer", "speech", (-1, 1, 1, 2)),
    ("e_branchformer", "all", (-1, 1, 1, 2)),
    ("e_branchformer", "all", "interleaved:3"),
    ("e_branchformer", "all", "bottom:2"),
    ("e_branchformer", "all", "middle"),
    ("e_branchformer", "all", "top:2"),
    ("e_branchformer", "all", "sandwich:2"),
]


@pytest.fixture(params=PLACED, ids=lambda p: "-".join(map(str, p)))
def trained(request, upscaled):
    """Each kind and scope, and the hybrid at every placement, in a training state."""
    return upscaled(*request.param, seed=0)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(trained, spoken, side):
    lm = trained
    inputs, attention, speech, starts = batch(spoken, side)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    together = lm(
        inputs_embeds=inputs,
        attention_mask=attention,
        position_ids=positions,
        speech_mask=speech,
    ).logits
    for b, start in enumerate(starts.tolist()):
        one, mask = alone(spoken, b)
        single = lm(inputs_embeds=one, speech_mask=mask).logits[0]
        there = together[b, start : start + len(single)]
        torch.testing.assert_close(there, single, atol=1e-5, rtol=0)


@torch.no_grad()
def test_right_padding_changes_nothing_without_an_attention_mask(trained, spoken):
    lm = trained
    inputs, _, speech, _ = batch(spoken, "right")
    inputs[1, 9:] = 5.0  # arbitrary values
    together = lm(inputs_embeds=inputs, speech_mask=speech).logits
    for b in range(3):
        one, mask = alone(spoken, b)
        single = lm(inputs_embeds=one, speech_mask=mask).logits[0]
        torch.testing.assert_close(
            together[b, : len(single)], single, atol=1e-5, rtol=0
        )


@torch.no_grad()
def test_cached_steps_give_the_logits_of_the_full_forward(trained, spoken):
    lm = trained
    inputs, attention, speech, starts = batch(spoken, "left")
    # sampled, because the best token of a random model is often the same one again
    out = generate(lm, inputs, attention, speech, do_sample=True, temperature=3.0)
    steps_BNV = torch.stack(out.logits, dim=1)
    assert steps_BNV.size(1) == 8
    assert len(set(out.sequences.flatten().tolist())) > 8
    for b in range(3):
        one, mask = alone(spoken, b)
        tokens_ND = lm.get_input_embeddings()(out.sequences[b, :-1])
        full = torch.cat([one, tokens_ND[None]], dim=1)
        mask = torch.nn.functional.pad(mask, (0, 7), value=False)
        logits = lm(inputs_embeds=full, speech_mask=mask).logits[0, -8:]
        torch.testing.assert_close(steps_BNV[b], logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_beams", [1, 3])
@torch.no_grad()
def test_generation_without_a_cache_gives_the_same(trained, spoken, num_beams):
    inputs, attention, speech, _ = batch(spoken, "left")
    options = dict(num_beams=num_beams)
    cached = generate(trained, inputs, attention, speech, **options)
    plain = generate(trained, inputs, attention, speech, use_cache=False, **options)
    assert cached.sequences.tolist() == plain.sequences.tolist()
    for one, other in zip(cached.logits, plain.logits):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_of_a_batch_equals_that_of_each_alone(trained, spoken, num_beams):
    lm = trained
    together = generate(lm, *batch(spoken, "left")[:3], num_beams=num_beams)
    if num_beams > 1:  # the cache was reordered
        assert together.beam_indices.unique().numel() > 3
    for b in range(3):
        one, mask = alone(spoken, b)
        real = torch.ones(one.shape[:2]).long()
        single = generate(lm, one, real, mask, num_beams=num_beams)
        assert single.sequences[0].tolist() == together.sequences[b].tolist()


def generate(lm, inputs, attention, speech, **options):
    torch.manual_seed(0)
    defaults = dict(max_new_tokens=8, do_sample=False, pad_token_id=1, eos_token_id=[])
    return lm.generate(
        inputs_embeds=inputs,
        attention_mask=attention,
        speech_mask=speech,
        return_dict_in_generate=True,
        output_logits=True,
        **{**defaults, **options},
    )


# -- training --------------------------------------------------------------------------


def test_the_first_step_has_a_gradient_for_every_zeroed_projection(
    upscaled, kind_and_scope, spoken
):
    lm = upscaled(*kind_and_scope).train()
    zeroed = {
        name: parameter
        for place, layer in inserted_layers(lm).items()
        for name, parameter in layer.named_parameters(prefix=f"model.layers.{place}")
        if parameter.dim() == 2 and not parameter.any()
    }
    per_layer = 3 if kind_and_scope == ("e_branchformer", "speech") else 2
    assert len(zeroed) == 4 * per_layer
    training_loss(lm, spoken).backward()
    for name, parameter in lm.named_parameters():
        if name in zeroed:
            assert parameter.grad.abs().max() > 0, name
        elif not parameter.requires_grad:
            assert parameter.grad is None, name


def test_training_moves_the_inserted_layers_and_nothing_of_the_base_lm(
    upscaled, kind_and_scope, spoken
):
    lm = upscaled(*kind_and_scope).train()
    before = {n: p.detach().clone() for n, p in lm.named_parameters()}
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        training_loss(lm, spoken).backward()
        optimizer.step()
    places = [f"model.layers.{place}." for place in inserted_layers(lm)]
    for name, parameter in lm.named_parameters():
        inserted = name.startswith(tuple(places))
        assert inserted == (not torch.equal(parameter, before[name])), name


def training_loss(lm, spoken):
    inputs, attention, speech, _ = batch(spoken, "right")
    logits = lm(
        inputs_embeds=inputs, attention_mask=attention, speech_mask=speech
    ).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.arange(logits.size(0) * logits.size(1)) % 250
    )


def test_inserted_layers_are_where_the_positions_say(upscaled, tiny_lm, kind):
    lm = upscaled(kind, "all", positions=[1, -1, 1, 2])
    assert list(inserted_layers(lm)) == [0, 3, 4, 6]
    base = [layer for i, layer in enumerate(lm.model.layers) if i not in (0, 3, 4, 6)]
    for ours, theirs in zip(base, tiny_lm[0].model.layers, strict=True):
        assert torch.equal(ours.mlp.up_proj.weight, theirs.mlp.up_proj.weight)
    assert inserted_layers(tiny_lm[0]) == {}


# -- errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "conformer"}, "kind: 'conformer' .*transformer, e_branchformer"),
        ({"scope": "text"}, "scope: 'text' is not one of all, speech"),
        (
            {"kernel": 3, "depth": 1},
            "e_branchformer.*: unknown option.*depth, kernel; expected some of cgmlp_",
        ),
        (
            {"kind": "transformer", "kernel": 3},
            "unknown option.*kernel; expected some of none",
        ),
    ],
)
def test_an_unknown_option_or_value_is_an_error_that_names_what_is_allowed(
    tiny_lm, options, message
):
    with pytest.raises(ValueError, match=message):
        upscale(tiny_lm[0], **options)


def test_a_refused_option_leaves_the_lm_as_it_was(tiny_lm):
    with pytest.raises(ValueError):
        upscale(tiny_lm[0], cgmlp_conv_kernel=4)
    assert len(tiny_lm[0].model.layers) == tiny_lm[0].config.num_hidden_layers == 3
    assert upscale(tiny_lm[0]) is tiny_lm[0]


def test_upscaling_twice_is_an_error(upscaled):
    with pytest.raises(ValueError, match="up-scaled before"):
        upscale(upscaled("transformer", "all"))


def test_a_model_that_is_not_of_the_llama_type_is_an_error():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11))
    with pytest.raises(ValueError, match="GPT2LMHeadModel is not .* Llama type"):
        upscale(gpt2)


def test_a_model_with_windowed_attention_is_an_error(tiny_lm):
    tiny_lm[0].config.layer_types = ["full_attention", "sliding_attention"] * 2
    with pytest.raises(ValueError, match="LlamaForCausalLM .*sliding_attention"):
        upscale(tiny_lm[0])


@pytest.mark.parametrize(
    "mask, message",
    [
        (torch.ones(2, 17), r"expected bool \(2, time\), got torch.float32"),
        (torch.ones(1, 17, dtype=torch.bool), r"expected bool \(2, time\).*\(1, 17\)"),
        (torch.ones(2, 18, dtype=torch.bool), "18 positions for an input of 17"),
    ],
)
def test_a_speech_mask_that_does_not_fit_is_an_error(upscaled, ids, mask, message):
    with pytest.raises(ValueError, match=f"speech_mask: {message}"):
        upscaled("transformer", "speech")(input_ids=ids, speech_mask=mask)


def test_the_up_scaled_model_keeps_its_type_and_its_copy_works(upscaled, tiny_lm, ids):
    lm = upscaled("e_branchformer", "all", seed=0)
    assert isinstance(lm, type(tiny_lm[0])) and type(lm).__name__ == "LlamaForCausalLM"
    assert torch.equal(copy.deepcopy(lm)(ids).logits, lm(ids).logits)
