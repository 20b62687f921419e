"""Views of a stack, and added layers kept, dropped or bypassed row by row."""

import threading

import pytest
import torch

from espnet_dus import drop_added_layers
from espnet_dus.model.adaptation import adapt
from espnet_dus.model.upscaling import stack

IDS_BT = torch.tensor([[5, 9, 11, 40, 7, 8], [7, 7, 200, 3, 90, 14]])
GREEDY = dict(max_new_tokens=6, do_sample=False, pad_token_id=1, eos_token_id=[])


@pytest.fixture
def mixed(tiny_lm):
    """Embeddings and speech mask of two rows: one with speech, one of text."""
    generator = torch.Generator().manual_seed(2)
    inputs_BTD = tiny_lm[0].get_input_embeddings()(IDS_BT).detach()
    inputs_BTD[0, :4] = torch.randn(4, 64, generator=generator)
    mask_BT = torch.zeros(2, 6, dtype=torch.bool)
    mask_BT[0, :4] = True
    return inputs_BTD, mask_BT


# -- views -----------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(8))
@torch.no_grad()
def test_the_two_parts_of_a_stack_compute_what_the_whole_does(
    upscaled, kind_and_scope, mixed, cut
):
    lm = upscaled(*kind_and_scope, seed=1)
    inputs_BTD, mask_BT = mixed
    masks = dict(speech_mask=mask_BT)
    whole_BTD = lm.model(inputs_embeds=inputs_BTD, **masks).last_hidden_state
    for part in (stack(lm, 0, cut, norm=False), stack(lm, cut)):
        inputs_BTD = part(inputs_embeds=inputs_BTD, **masks).last_hidden_state
    assert torch.equal(inputs_BTD, whole_BTD)


def test_a_view_shares_every_parameter_and_changes_nothing_of_the_lm(upscaled, kind):
    lm = upscaled(kind, "all")
    before = lm.config.to_dict(), list(lm.model.layers), lm.model.norm
    view = stack(lm, 1, 3, norm=False)
    assert view.config.num_hidden_layers == len(view.layers) == 2
    assert (lm.config.to_dict(), list(lm.model.layers), lm.model.norm) == before
    own = {id(parameter) for parameter in lm.parameters()}
    assert {id(parameter) for parameter in view.parameters()} <= own


def test_gradients_flow_through_a_view_into_the_lm(upscaled, kind, mixed):
    lm = upscaled(kind, "all", (0, 2), seed=1)
    inputs_BTD, mask_BT = mixed
    view = stack(lm, 0, 2, norm=False)
    out = view(inputs_embeds=inputs_BTD, speech_mask=mask_BT)
    out.last_hidden_state.square().sum().backward()
    got = {n for n, p in lm.named_parameters() if p.grad is not None and p.grad.any()}
    assert got and all(name.startswith("model.layers.1.") for name in got)


@torch.no_grad()
def test_threads_run_the_whole_a_part_and_the_base_lm_at_once(tiny_lm, upscaled, kind):
    lm = upscaled(kind, "all", (0, 1), seed=1)

    def part():
        view = stack(lm, 0, 2, norm=False)
        return view(IDS_BT).last_hidden_state

    def base():
        with drop_added_layers(lm):
            return lm(IDS_BT).logits

    def whole():
        return lm(IDS_BT).logits

    expected = [part(), tiny_lm[0](IDS_BT).logits, whole()]
    wrong, barrier = [], threading.Barrier(3)

    @torch.no_grad()
    def run(pass_, wanted):
        barrier.wait()
        for _ in range(30):
            if not torch.equal(pass_(), wanted):
                wrong.append(pass_.__name__)

    threads = [
        threading.Thread(target=run, args=args)
        for args in zip((part, base, whole), expected)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
def test_hidden_states_are_recorded_as_before_the_conversion(tiny_lm, upscaled):
    lm = upscaled("transformer", "all")
    states = lm(IDS_BT, output_hidden_states=True).hidden_states
    assert len(states) == 8
    theirs = tiny_lm[0](IDS_BT, output_hidden_states=True).hidden_states
    assert torch.equal(states[-1], theirs[-1])


# -- dropped ---------------------------------------------------------------------------


@torch.no_grad()
def test_dropped_layers_leave_the_base_lm_on_speech_too(
    tiny_lm, upscaled, kind_and_scope, mixed
):
    lm = upscaled(*kind_and_scope, seed=1)
    inputs_BTD, mask_BT = mixed
    options = dict(inputs_embeds=inputs_BTD, speech_mask=mask_BT)
    theirs = tiny_lm[0](inputs_embeds=inputs_BTD).logits
    assert torch.equal(lm(**options, added_layers="dropped").logits, theirs)
    with drop_added_layers(lm):
        assert torch.equal(lm(**options).logits, theirs)
    assert not torch.equal(lm(**options).logits, theirs)
    assert torch.equal(lm(**options, added_layers="kept").logits, lm(**options).logits)


@torch.no_grad()
def test_dropped_layers_generate_the_base_lms_text(tiny_lm, upscaled, kind):
    lm = upscaled(kind, "all", seed=1)
    theirs = tiny_lm[0].generate(IDS_BT, **GREEDY)
    assert torch.equal(lm.generate(IDS_BT, added_layers="dropped", **GREEDY), theirs)
    with drop_added_layers(lm):
        assert torch.equal(lm.generate(IDS_BT, **GREEDY), theirs)
    assert not torch.equal(lm.generate(IDS_BT, **GREEDY), theirs)


@torch.no_grad()
def test_one_lm_is_dropped_and_no_other(upscaled, kind):
    one, other = (upscaled(kind, "all", seed=1) for _ in range(2))
    kept = one(IDS_BT).logits
    with drop_added_layers(one):
        assert not torch.equal(one(IDS_BT).logits, kept)
        assert torch.equal(other(IDS_BT).logits, kept)


@torch.no_grad()
def test_an_error_within_the_block_ends_it(upscaled, kind):
    lm = upscaled(kind, "all", seed=1)
    kept = lm(IDS_BT).logits
    with pytest.raises(RuntimeError, match="within"), drop_added_layers(lm):
        raise RuntimeError("within")
    assert torch.equal(lm(IDS_BT).logits, kept)


@torch.no_grad()
def test_low_rank_updates_are_dropped_in_one_thread_while_another_uses_them(
    tiny_lm, randomise
):
    base_BTV = tiny_lm[0](IDS_BT).logits
    lm = randomise(adapt(tiny_lm[0], "lora", rank=2)).eval()
    adapted_BTV = lm(IDS_BT).logits
    assert not torch.equal(adapted_BTV, base_BTV)
    elsewhere = []

    @torch.no_grad()
    def use():
        elsewhere.append(lm(IDS_BT).logits)

    with drop_added_layers(lm):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert torch.equal(lm(IDS_BT).logits, base_BTV)
    assert torch.equal(elsewhere[0], adapted_BTV)
    assert torch.equal(lm(IDS_BT).logits, adapted_BTV)


# -- auto ------------------------------------------------------------------------------


@torch.no_grad()
def test_auto_gives_text_rows_the_base_lms_logits_next_to_speech(
    tiny_lm, upscaled, kind_and_scope, mixed
):
    lm = upscaled(*kind_and_scope, seed=1)
    inputs_BTD, mask_BT = mixed
    options = dict(inputs_embeds=inputs_BTD, speech_mask=mask_BT)
    auto, kept = (lm(**options, added_layers=mode).logits for mode in ("auto", "kept"))
    theirs = tiny_lm[0](inputs_embeds=inputs_BTD).logits
    assert torch.equal(auto[0], kept[0]) and not torch.equal(auto[0], theirs[0])
    assert torch.equal(auto[1], theirs[1])
    assert torch.equal(kept[1], theirs[1]) == (kind_and_scope[1] == "speech")


@torch.no_grad()
def test_auto_without_speech_is_the_base_lm_and_with_speech_alone_all_layers(
    tiny_lm, upscaled, kind, mixed
):
    lm = upscaled(kind, "all", seed=1)
    theirs = tiny_lm[0](IDS_BT).logits
    assert torch.equal(lm(IDS_BT, added_layers="auto").logits, theirs)
    no_speech = torch.zeros_like(IDS_BT, dtype=torch.bool)
    ours = lm(IDS_BT, speech_mask=no_speech, added_layers="auto").logits
    assert torch.equal(ours, theirs)
    inputs_BTD, mask_BT = mixed
    options = dict(inputs_embeds=inputs_BTD[:1], speech_mask=mask_BT[:1])
    kept = lm(**options).logits
    assert torch.equal(lm(**options, added_layers="auto").logits, kept)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_auto_generates_for_each_row_what_it_would_alone(
    tiny_lm, upscaled, kind_and_scope, mixed, num_beams, use_cache
):
    lm = upscaled(*kind_and_scope, seed=1)
    inputs_BTD, mask_BT = mixed
    # padded on the left: the text row is shorter
    inputs_BTD[1, :2] = 0
    attention_BT = torch.ones_like(IDS_BT)
    attention_BT[1, :2] = 0
    options = dict(GREEDY, num_beams=num_beams, use_cache=use_cache)
    together = lm.generate(
        inputs_embeds=inputs_BTD,
        attention_mask=attention_BT,
        speech_mask=mask_BT,
        added_layers="auto",
        **options,
    )
    speech = lm.generate(
        inputs_embeds=inputs_BTD[:1], speech_mask=mask_BT[:1], **options
    )
    text = tiny_lm[0].generate(inputs_embeds=inputs_BTD[1:, 2:], **options)
    assert together.tolist() == [speech[0].tolist(), text[0].tolist()]
    assert torch.equal(
        text,
        lm.generate(inputs_embeds=inputs_BTD[1:, 2:], added_layers="auto", **options),
    )


@torch.no_grad()
def test_a_cached_step_that_has_lost_its_speech_mask_is_an_error(upscaled, kind, mixed):
    lm = upscaled(kind, "all", seed=1)
    inputs_BTD, mask_BT = mixed
    out = lm(inputs_embeds=inputs_BTD, speech_mask=mask_BT, added_layers="auto")
    step = dict(past_key_values=out.past_key_values, added_layers="auto")
    with pytest.raises(ValueError, match="'auto' needs the speech_mask"):
        lm(IDS_BT[:, :1], **step)
    lm(IDS_BT[:, :1], speech_mask=mask_BT, **step)


def test_an_unknown_mode_is_an_error_that_names_those_there_are(upscaled, kind):
    lm = upscaled(kind, "speech")
    with pytest.raises(ValueError, match="'off' is not one of kept, dropped, auto"):
        lm(IDS_BT, added_layers="off")
