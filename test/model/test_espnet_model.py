"""The whole model: losses, padding, modes and precision."""

import pytest
import torch
from espnet2.asr.encoder import e_branchformer_encoder
from espnet2.asr.layers import cgmlp

from espnet_dus.model.features import FeatureModel
from espnet_dus.model.layers import hybrid
from espnet_dus.model.upscaling import inserted_layers, stack

SECONDS = (1.3, 0.6, 0.98)
# token ids of the text before the speech, and their numbers
BEFORE = torch.tensor([[5, 9, 11], [7, 0, 0], [3, 4, 0]]), torch.tensor([3, 1, 2])


@pytest.fixture
def model(tiny_model, randomise, adaptation_conf, kind_and_scope):
    """Of each kind and scope, in some training state, in eval mode."""
    model = tiny_model(adaptation_conf=adaptation_conf(*kind_and_scope)).eval()
    return randomise(model, seed=3)


@pytest.fixture
def default_model(tiny_model, randomise):
    return randomise(tiny_model().eval(), seed=3)


def logits(model, batch):
    """Logits of each utterance at its real positions."""
    speech_BSD, lengths_B = model.embed_speech(batch["speech"], batch["speech_lengths"])
    seq = model.join_text(speech_BSD, lengths_B, batch["text"], batch["text_lengths"])
    ctc_BTD = model.lower(seq)
    hidden_BTD = model.upper(ctc_BTD, seq)
    logits_BTV = model.lm.lm_head(hidden_BTD)
    return [
        (logits_BTV[b, :length], ctc_BTD[b, :length])
        for b, length in enumerate(seq.lengths_B.tolist())
    ]


# -- padding ---------------------------------------------------------------------------


@torch.no_grad()
def test_an_utterance_has_the_same_logits_alone_and_in_a_batch(model, tiny_batch):
    together = logits(model, tiny_batch(*SECONDS))
    for b in range(3):
        (alone,) = logits(model, tiny_batch(*SECONDS, which=[b]))
        for ours, theirs in zip(together[b], alone, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_the_losses_of_a_batch_are_those_of_its_utterances(model, tiny_batch):
    batch = tiny_batch(*SECONDS)
    _, together, weight = model(**batch)
    assert weight == 1
    num_tokens = batch["text_lengths"] + 1  # with EOS
    alone = [model(**tiny_batch(*SECONDS, which=[b]))[1] for b in range(3)]
    # 0.6 s are 6 speech positions, too few for 9 units: no part of the CTC loss
    placed = batch["text_ctc_lengths"] * torch.tensor([1, 0, 1])
    for name, weights in (
        ("loss_ce", num_tokens),
        ("acc", num_tokens),
        ("loss_ctc", placed),
    ):
        expected = sum(w * stats[name] for w, stats in zip(weights, alone))
        torch.testing.assert_close(together[name], expected / weights.sum())


@pytest.mark.parametrize("scope", ["all", "speech"])
@torch.no_grad()
def test_no_transcript_reaches_the_speech_through_the_convolutions(
    tiny_model, adaptation_conf, randomise, tiny_batch, monkeypatch, scope
):
    conf = dict(cgmlp_conv_kernel=31, merge_conv_kernel=15)
    conf = adaptation_conf("e_branchformer", scope, (-1, 0), **conf)
    model = randomise(tiny_model(adaptation_conf=conf).eval(), seed=3)
    batch = tiny_batch(1.3, 0.6)
    changed = dict(batch, text=batch["text"].clone())
    changed["text"][1, :3] += 7

    def shorter(batch):
        """What the CTC head reads of the shorter utterance."""
        embedded = model.embed_speech(batch["speech"], batch["speech_lengths"])
        seq = model.join_text(*embedded, batch["text"], batch["text_lengths"])
        return model.lower(seq)[1, : embedded[1][1]]

    # whether or not ESPnet masks what follows the speech
    for module in (cgmlp, e_branchformer_encoder, hybrid):
        monkeypatch.setattr(module, "mask_padded_frames", lambda x, mask: x)
    assert torch.equal(shorter(batch), shorter(changed))


# -- losses ----------------------------------------------------------------------------


@pytest.mark.parametrize("lsm_weight", [0.0, 0.1])
@torch.no_grad()
def test_the_cross_entropy_is_that_of_the_transcript_and_eos(
    tiny_model, randomise, tiny_batch, lsm_weight
):
    model = tiny_model(model_conf=dict(prompt="Transcript:\n", lsm_weight=lsm_weight))
    model = randomise(model.eval(), seed=3)
    batch = tiny_batch(0.8)
    _, stats, _ = model(**batch)

    speech_BSD, _ = model.embed_speech(batch["speech"], batch["speech_lengths"])
    prompt = model.tokenizer("Transcript:\n", add_special_tokens=False).input_ids
    targets = batch["text"][0].tolist() + [model.tokenizer.eos_token_id]
    text = torch.tensor([prompt + targets[:-1]])
    inputs = torch.cat([speech_BSD, model.lm.get_input_embeddings()(text)], dim=1)
    speech_mask = torch.arange(inputs.size(1))[None] < speech_BSD.size(1)
    full = model.lm(inputs_embeds=inputs, speech_mask=speech_mask).logits[0]
    # the last position before the transcript predicts its first token
    predictions = full[-len(targets) :]
    loss = torch.nn.functional.cross_entropy(
        predictions, torch.tensor(targets), label_smoothing=lsm_weight
    )
    torch.testing.assert_close(stats["loss_ce"][0], loss)


@torch.no_grad()
def test_the_accuracy_is_the_share_of_tokens_that_come_first(
    default_model, tiny_batch, monkeypatch
):
    model, batch = default_model, tiny_batch(0.8, 0.7)
    first = batch["text"][0, 0]
    number = int((batch["text"] == first).sum())
    assert 0 < number < int((batch["text_lengths"] + 1).sum())
    always = torch.nn.functional.one_hot(first, model.lm.config.vocab_size).float()
    monkeypatch.setattr(
        model.lm.lm_head, "forward", lambda hidden: always.expand(len(hidden), -1)
    )
    _, stats, _ = model(**batch)
    expected = number / int((batch["text_lengths"] + 1).sum())
    assert stats["acc"].item() == pytest.approx(expected)


def test_a_trained_prompt_starts_from_its_text_and_takes_part_in_speech_alone(
    tiny_model, randomise, tiny_batch
):
    conf = dict(prompt="Transcript:\n")
    batch = tiny_batch(0.8, 0.6)
    plain = randomise(tiny_model(model_conf=conf).eval(), seed=3)
    conf = dict(conf, prompt_tuning=True)
    tuned = tiny_model(model_conf=conf).eval()
    weights = dict(plain.state_dict(), prompt_embeddings=tuned.prompt_embeddings.data)
    tuned.load_state_dict(weights)
    (loss, stats, _), expected = tuned(**batch), plain(**batch)[1]
    assert torch.equal(stats["loss_ce"], expected["loss_ce"])
    loss.backward()
    assert (tuned.prompt_embeddings.grad.abs().sum(1) > 0).all()

    tuned.prompt_embeddings.data.normal_()
    with torch.no_grad():
        stats = tuned(**batch)[1]
        assert not torch.isclose(stats["loss_ce"], expected["loss_ce"])
        torch.testing.assert_close(stats["loss_ctc"], expected["loss_ctc"])
        text = batch["text"][:1, :3]
        assert torch.equal(tuned.lm(text).logits, plain.lm(text).logits)


def test_a_prompt_without_a_token_cannot_be_trained(tiny_model):
    with pytest.raises(ValueError, match="prompt_tuning: the prompt has no token"):
        tiny_model(model_conf=dict(prompt="", prompt_tuning=True))


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3, 1.0])
@torch.no_grad()
def test_the_loss_weighs_ctc_and_cross_entropy(
    tiny_model, randomise, tiny_batch, ctc_weight
):
    model = randomise(tiny_model(model_conf={"ctc_weight": ctc_weight}).eval())
    loss, stats, _ = model(**tiny_batch(*SECONDS))
    expected = 0.0
    if ctc_weight < 1:
        expected += (1 - ctc_weight) * stats["loss_ce"]
    if ctc_weight > 0:
        expected += ctc_weight * stats["loss_ctc"]
    torch.testing.assert_close(loss, expected)
    assert ("loss_ctc" in stats) == (ctc_weight > 0)
    assert ("loss_ce" in stats) == (ctc_weight < 1)
    assert {"loss", "acc"} <= set(stats)


@torch.no_grad()
def test_validation_reports_the_word_error_rate_of_ctc(default_model, tiny_batch):
    batch = tiny_batch(*SECONDS)
    references = [units.tolist() for units in batch["text_ctc"]]
    default_model.ctc.greedy = lambda x_BSD, lengths_B: [
        [unit for unit in units if unit > 0] for units in references
    ]
    assert default_model(**batch)[1]["wer_ctc"] == 0
    default_model.ctc.greedy = lambda x_BSD, lengths_B: [[], [], []]
    assert default_model(**batch)[1]["wer_ctc"] == 100
    assert "wer_ctc" not in default_model.train()(**batch)[1]


@torch.no_grad()
def test_the_share_of_units_that_ctc_cannot_place_is_reported(
    default_model, tiny_batch
):
    batch = tiny_batch(1.3, 1.3)
    assert default_model(**batch)[1]["ctc_skipped"] == 0
    num_units = int(batch["text_ctc_lengths"][0])
    units = torch.full((2, 200), -1)
    units[0, :num_units] = batch["text_ctc"][0, :num_units]
    units[1] = torch.arange(200) % 8 + 2
    batch.update(text_ctc=units, text_ctc_lengths=torch.tensor([num_units, 200]))
    stats = default_model(**batch)[1]
    assert stats["ctc_skipped"].item() == pytest.approx(200 / (200 + num_units))
    alone = default_model(**tiny_batch(1.3, 1.3, which=[0]))[1]
    torch.testing.assert_close(stats["loss_ctc"], alone["loss_ctc"])


# -- text before the speech ------------------------------------------------------------


@torch.no_grad()
def test_text_before_the_speech_is_read_first_and_shifts_the_losses_only(
    model, tiny_batch
):
    batch, before = tiny_batch(*SECONDS), BEFORE
    texts = dict(zip(("text_before", "text_before_lengths"), before))
    stats = model(**batch, **texts)[1]
    embed = model.lm.get_input_embeddings()
    losses, ctc = [], []
    for b in range(3):
        one = tiny_batch(*SECONDS, which=[b])
        speech_BSD, lengths_B = model.embed_speech(one["speech"], one["speech_lengths"])
        ids = before[0][b, : before[1][b]].tolist()
        transcript = one["text"][0].tolist() + [model.eos_id]
        text = torch.tensor([model.prompt_ids + transcript[:-1]])
        inputs = torch.cat([embed(torch.tensor([ids])), speech_BSD, embed(text)], 1)
        places = torch.arange(inputs.size(1))[None]
        mask = (places >= len(ids)) & (places < len(ids) + speech_BSD.size(1))
        out = model.lm(inputs_embeds=inputs, speech_mask=mask)
        losses += torch.nn.functional.cross_entropy(
            out.logits[0, -len(transcript) :],
            torch.tensor(transcript),
            reduction="none",
        ).tolist()
        view = stack(model.lm, 0, model.ctc_layer + 1, norm=False)
        heard = view(inputs_embeds=inputs, speech_mask=mask).last_hidden_state
        units = one["text_ctc"], one["text_ctc_lengths"]
        ctc.append(model.ctc(heard[mask][None], lengths_B, *units))
    torch.testing.assert_close(stats["loss_ce"][0], torch.tensor(losses).mean())
    placed = [(total, count) for total, count in ctc if total > 0]
    expected = sum(total for total, _ in placed) / sum(count for _, count in placed)
    torch.testing.assert_close(stats["loss_ctc"][0], expected)
    assert not torch.isclose(stats["loss_ce"], model(**batch)[1]["loss_ce"])


@torch.no_grad()
def test_ctc_reads_the_text_before_the_speech_in_a_search_as_in_training(
    model, tiny_batch
):
    batch = tiny_batch(*SECONDS)
    speech_BSD, lengths_B = model.embed_speech(batch["speech"], batch["speech_lengths"])
    texts = batch["text"], batch["text_lengths"], "right", BEFORE
    seq = model.join_text(speech_BSD, lengths_B, *texts)
    heard_BSD = seq.of_speech(model.lower(seq), speech_BSD.size(1))
    trained_BSU = model.ctc.log_probs(heard_BSD)
    searched_BSU = model.encode(speech_BSD, lengths_B, True, BEFORE).ctc_BSU
    for b, length in enumerate(lengths_B.tolist()):
        ours, theirs = searched_BSU[b, :length], trained_BSU[b, :length]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


# -- CTC alone -------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, BEFORE], ids=["", "text before"])
@torch.no_grad()
def test_ctc_alone_stops_at_the_ctc_layer_with_the_same_loss(
    tiny_model, randomise, tiny_batch, adaptation_conf, kind_and_scope, before
):
    model = tiny_model(
        adaptation_conf=adaptation_conf(*kind_and_scope, positions=[-1, 0, 2]),
        model_conf=dict(ctc_layer="inserted:1", ctc_warmup_epochs=2),
    )
    model = randomise(model.eval(), seed=3)
    called = []
    for place, layer in enumerate(model.lm.model.layers):
        layer.register_forward_hook(lambda *_, place=place: called.append(place))
    batch = tiny_batch(*SECONDS)
    if before is not None:
        batch.update(zip(("text_before", "text_before_lengths"), before))
    _, full, _ = model(**batch)
    assert called == [0, 1, 2, 3, 4, 5]

    for epoch, is_alone in ((1, True), (2, True), (3, False)):
        called.clear()
        model.set_epoch(epoch)
        loss, stats, _ = model(**batch)
        assert called == ([0, 1, 2] if is_alone else [0, 1, 2, 3, 4, 5])
        torch.testing.assert_close(stats["loss_ctc"], full["loss_ctc"])
        assert ("loss_ce" in stats) == (not is_alone)
        if is_alone:
            assert loss == stats["loss_ctc"] and stats["acc"] == 0
    torch.testing.assert_close(loss, full["loss"])


def test_an_error_in_a_ctc_only_forward_leaves_the_model_whole(
    default_model, tiny_batch
):
    model, batch = default_model, tiny_batch(*SECONDS)
    expected = model(**batch)[0]
    model.ctc_warmup_epochs, layer = 1, model.lm.model.layers[0]
    model.set_epoch(1)
    handle = layer.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**batch)
    handle.remove()
    model.set_epoch(2)
    torch.testing.assert_close(model(**batch)[0], expected)


# -- training --------------------------------------------------------------------------


ARMS = {
    "dus": {},
    "lora": dict(adaptation="lora", adaptation_conf={"rank": 2}),
    "frozen": dict(adaptation="frozen", adaptation_conf={}),
}


@pytest.mark.parametrize("arm", ARMS)
def test_training_moves_what_is_trained_and_nothing_of_the_base_lm(
    tiny_model, tiny_batch, tiny_lm, arm
):
    model = tiny_model(model_conf={"ctc_layer": "base:2"}, **ARMS[arm]).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model(**tiny_batch(*SECONDS))[0].backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == parameter.requires_grad, name
        assert parameter.requires_grad or parameter.grad is None, name
    frozen = [p for p in model.lm.parameters() if not p.requires_grad]
    for ours, loaded in zip(frozen, tiny_lm[0].parameters(), strict=True):
        assert torch.equal(ours, loaded)


def test_the_first_step_has_a_gradient_for_every_trained_module(
    tiny_model, tiny_batch, adaptation_conf, kind_and_scope
):
    model = tiny_model(adaptation_conf=adaptation_conf(*kind_and_scope)).train()
    model(**tiny_batch(*SECONDS))[0].backward()
    for module in (
        model.speech_embedder.project,
        model.ctc.ctc,
        *inserted_layers(model.lm).values(),
    ):
        assert any(p.grad is not None and p.grad.any() for p in module.parameters())


# -- modes and precision ---------------------------------------------------------------


def test_frozen_modules_stay_in_eval_mode(tiny_model):
    model = tiny_model().train()
    inserted = inserted_layers(model.lm)
    for place, layer in enumerate(model.lm.model.layers):
        modes = {module.training for module in layer.modules()}
        assert modes == {place in inserted}
    assert model.training and model.speech_embedder.training and model.ctc.training
    assert not any(module.training for module in model.eval().modules())


def test_a_frozen_speech_embedder_drops_nothing_out(tiny_model):
    model = tiny_model(speech_embedder_conf={"channels": 8, "dropout_rate": 0.5})
    model.speech_embedder.requires_grad_(False)  # what freeze_param does
    model.train()
    assert not any(module.training for module in model.speech_embedder.modules())
    assert model.ctc.dropout.training


def test_the_frozen_base_lm_keeps_its_precision(tiny_model):
    model = tiny_model(base_lm_conf={"dtype": "bfloat16"})
    assert model.to(dtype=torch.float32, device="cpu") is model
    for name, parameter in model.named_parameters():
        expected = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == expected, name


def test_a_bfloat16_base_lm_is_trained_in_mixed_precision(
    tiny_model, tiny_batch, adaptation_conf, kind_and_scope
):
    conf = adaptation_conf(*kind_and_scope)
    batch = tiny_batch(*SECONDS)
    exact = tiny_model(adaptation_conf=conf).train()
    exact_loss = exact(**batch)[0]
    model = tiny_model(adaptation_conf=conf, base_lm_conf={"dtype": "bfloat16"})
    loss = model.to(dtype=torch.float32).train()(**batch)[0]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact_loss, atol=0, rtol=0.03)
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


# -- errors, statistics ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model_conf": {"ctc_weight": 1.5}}, r"ctc_weight: 1.5 is not in \[0, 1\]"),
        ({"ctc_units": None}, "ctc_weight is 0.3 .* no CTC head: give --ctc_units"),
        (
            {
                "ctc_units": None,
                "model_conf": {"ctc_weight": 0.0, "ctc_warmup_epochs": 1},
            },
            "ctc_warmup_epochs 1, but there is no CTC head",
        ),
        ({"model_conf": {"ctc_layer": "inserted:2"}}, "ctc_layer: 'inserted:2' names"),
    ],
)
def test_contradictory_options_are_an_error(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**options)


@torch.no_grad()
def test_a_model_without_ctc_needs_no_units(tiny_model, tiny_batch):
    options = dict(ctc_units=None, model_conf={"ctc_weight": 0.0})
    model = tiny_model(**options).eval()
    _, stats, _ = model(**tiny_batch(*SECONDS, **options))
    assert set(stats) == {"loss", "loss_ce", "acc"}


@torch.no_grad()
def test_statistics_are_collected_of_the_features_of_each_utterance(
    default_model, tiny_batch
):
    batch = tiny_batch(*SECONDS)
    collected = default_model.collect_feats(**batch)
    light = FeatureModel(default_model.frontend).collect_feats(**batch)
    assert torch.equal(collected["feats"], light["feats"])
    frames = [(round(s * 16000) - 400) // 160 + 1 for s in SECONDS]
    assert collected["feats_lengths"].tolist() == frames
    assert collected["feats"].shape == (3, frames[0], 20)
    with pytest.raises(RuntimeError, match="only collects statistics"):
        FeatureModel(None)(**batch)


@torch.no_grad()
def test_a_model_of_features_takes_them_as_they_are(tiny_model, noises):
    model = tiny_model(input_size=20).eval()
    assert model.frontend is None
    feats = torch.from_numpy(noises(0.1)[0]).reshape(1, 80, 20)
    x_BSD, lengths_B = model.embed_speech(feats, torch.tensor([80]))
    assert x_BSD.shape == (1, 9, 64) and lengths_B.tolist() == [9]


@pytest.mark.parametrize("arm", ["full", "frozen"])
def test_every_arm_computes_in_the_precision_the_base_lm_came_in(tiny_model, arm):
    model = tiny_model(
        adaptation=arm,
        adaptation_conf={},
        base_lm_conf={"dtype": "bfloat16"},
        model_conf={"ctc_layer": "base:1"},
    )
    with model.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.bfloat16
    trained = [p.dtype for p in model.parameters() if p.requires_grad]
    assert set(trained) == {torch.float32}


def test_a_sequence_beyond_the_context_is_a_warning_with_both_numbers(
    default_model, tiny_batch, caplog, monkeypatch
):
    batch = tiny_batch(*SECONDS)
    context = default_model.lm.config.max_position_embeddings
    default_model(**batch)
    assert "context" not in caplog.text
    monkeypatch.setattr(default_model.lm.config, "max_position_embeddings", 7)
    for _ in range(2):
        default_model(**batch)
    (message,) = [m for m in caplog.messages if "context is 7" in m]
    assert 7 < int(message.split(" positions")[0].split()[-1]) <= context
