"""Text stays as the base LM has it, in scope `all` too."""

import pytest
import torch
from torch.nn import ModuleList

from espnet_dus.model.text_retention import TextRetention, text_drift, write_text
from espnet_dus.model.upscaling import inserted_layers, stack

IDS_NT = torch.tensor([[5, 9, 11, 40], [7, 7, 200, 3]])


@pytest.mark.parametrize("positions", [(-1, -1), (-1, 1), (0,)])
def test_the_drift_is_what_the_base_lm_does_not_have_there(
    tiny_lm, upscaled, kind, positions
):
    lm = upscaled(kind, "all", positions, seed=1)
    last = max(inserted_layers(lm))
    adapted_NTD = stack(lm, 0, last + 1, norm=False)(IDS_NT).last_hidden_state
    hidden = tiny_lm[0](IDS_NT, output_hidden_states=True).hidden_states
    base_NTD = hidden[max(positions) + 1]  # what the layer above is given
    moved_NT, base_NT = (
        (x.norm(dim=-1) ** 2) for x in (adapted_NTD - base_NTD, base_NTD)
    )
    median = base_NT.flatten().sort().values[3]  # the lower one of 8 positions
    expected = moved_NT / base_NT.clamp(min=median)
    drift = text_drift(lm, IDS_NT)
    assert drift > 1e-3
    torch.testing.assert_close(drift, expected.mean())


def test_a_token_without_an_embedding_has_a_drift_too(upscaled, kind):
    lm = upscaled(kind, "all", (-1,), seed=1)
    lm.get_input_embeddings().weight.data[5] = 0.0
    drift = text_drift(lm, IDS_NT)
    drift.backward()
    assert torch.isfinite(drift)
    for parameter in lm.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_new_layers_have_no_drift(upscaled, kind):
    assert text_drift(upscaled(kind, "all", (-1, 1)), IDS_NT) == 0


def test_the_layers_above_are_not_run_and_the_model_is_left_as_it_was(upscaled, kind):
    lm = upscaled(kind, "all", (-1, 0), seed=1)
    before = lm(IDS_NT).logits
    ran = []
    for index, layer in enumerate(lm.model.layers):
        layer.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    text_drift(lm, IDS_NT)
    assert max(ran) == 2  # new, base, new | base, base
    assert torch.equal(lm(IDS_NT).logits, before)


# -- the text it is measured on --------------------------------------------------------


def test_the_base_lm_writes_not_the_adapted_one(tiny_lm, upscaled, kind):
    new = upscaled(kind, "all", (-1, 1))
    trained = upscaled(kind, "all", (-1, 1), seed=1)
    written = write_text(trained, num_sequences=5, num_tokens=12, batch_size=2)
    assert written.shape == (5, 12)
    assert torch.equal(written, write_text(new, 5, 12, batch_size=2))
    # likelier to the base LM than what it has not written
    with torch.no_grad():
        losses = [
            tiny_lm[0](ids_NT, labels=ids_NT).loss
            for ids_NT in (written, written[:, torch.randperm(12)])
        ]
    assert losses[0] < losses[1]


def test_writing_disturbs_neither_a_training_nor_its_random_numbers(upscaled, kind):
    lm = upscaled(kind, "all", (0,), seed=1)
    lm.model.layers[1].train()

    def modes():
        return [m.training for m in lm.modules() if not isinstance(m, ModuleList)]

    modes_before = modes()
    before, state = lm(IDS_NT).logits, torch.get_rng_state()
    write_text(lm, 3, 8)
    assert torch.equal(state, torch.get_rng_state())
    assert modes() == modes_before
    assert torch.equal(lm(IDS_NT).logits, before)


def test_half_of_a_text_is_written_by_the_base_lm_once_half_is_random(upscaled, kind):
    lm = upscaled(kind, "all", (0,))
    retention = TextRetention(num_written=3, num_tokens=8)
    first_NT = retention.text(lm)
    written = retention.written
    second_NT = retention.text(lm)
    assert retention.written is written and not torch.equal(first_NT, second_NT)
    rows = written.tolist()
    for ids_NT in (first_NT, second_NT):
        assert ids_NT.shape == (4, 8) and ids_NT.max() < lm.config.vocab_size
        assert [row in rows for row in ids_NT.tolist()] == [True, True, False, False]


# -- in the model ----------------------------------------------------------------------


@pytest.fixture
def make(tiny_model, adaptation_conf, randomise):
    def make(weight, kind="e_branchformer", scope="all", **options):
        model = tiny_model(
            adaptation_conf=adaptation_conf(kind, scope, (-1, 0)),
            model_conf=dict(text_retention_weight=weight, **options),
        )
        model.text_retention = TextRetention(num_written=8, num_tokens=12)
        randomise(model.lm, seed=1)
        return model.train()

    return make


@pytest.mark.parametrize("ctc_warmup_epochs", [0, 1])
def test_the_loss_has_the_drift_in_it(make, tiny_batch, ctc_warmup_epochs):
    losses = {}
    for weight in (0.0, 3.0):
        model = make(weight, ctc_warmup_epochs=ctc_warmup_epochs)
        model.set_epoch(1)
        loss, stats, _ = model(**tiny_batch(0.9, 0.5))
        losses[weight] = loss
        assert ("text_drift" in stats) == (weight > 0)
    assert stats["text_drift"] > 1e-3
    torch.testing.assert_close(losses[3.0] - losses[0.0], 3 * stats["text_drift"])


def test_training_it_brings_text_back_to_the_base_lm(make, kind):
    model = make(1.0, kind=kind)
    trained = [p for p in model.lm.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    drifts = []
    for _ in range(150):
        drift = model.text_retention(model.lm)
        optimizer.zero_grad()
        drift.backward()
        optimizer.step()
        drifts.append(drift.item())
    assert drifts[-1] < drifts[0] / 5


def test_validation_draws_no_random_text(make, tiny_batch):
    model = make(1.0).eval()
    state = torch.get_rng_state()
    _, stats, _ = model(**tiny_batch(0.9, 0.5))
    assert "text_drift" not in stats and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("scope, weight", [("speech", 1.0), ("all", -0.5)])
def test_a_weight_that_has_nothing_to_weigh_is_refused(make, scope, weight):
    with pytest.raises(ValueError, match=f"text_retention_weight: {weight}"):
        make(weight, scope=scope)
