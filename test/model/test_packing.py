"""Packing: the losses and gradients of one row are those of the padded batch."""

import pytest
import torch
from transformers.integrations import flash_attention

from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.model.packing import pack, use_packed_attention
from espnet_dus.model.sequence import join
from espnet_dus.search.config import SearchConfig
from espnet_dus.search.encoding import encode
from espnet_dus.search.greedy import greedy_search
from espnet_dus.training.throughput import WorkCounter

ARMS = {
    "full": dict(adaptation="full"),
    "lora": dict(adaptation="lora", adaptation_conf={"rank": 2}),
    "Transformer copies": ("transformer", "all"),
    "hybrid": ("e_branchformer", "all"),
    "Transformer, speech": ("transformer", "speech"),
    "E-Branchformer, speech": ("e_branchformer", "speech"),
}
FRAMES, TEXTS, BEFORE = [90, 33, 61], [3, 9, 1], [0, 4, 2]


@pytest.fixture(params=ARMS)
def make(request, tiny_model, adaptation_conf, randomise, ctc_units_dirs, tmp_path):
    """Return a function that builds an arm on speech tokens, in a training state."""
    TokenizerInfo("tiny", {"encoder": "none"}, 50.0, 16000, (5, 3)).write(tmp_path)
    arm = ARMS[request.param]

    def make(**model_conf):
        options = arm
        if isinstance(arm, tuple):
            options = dict(adaptation_conf=adaptation_conf(*arm))
        else:
            model_conf["ctc_layer"] = "base:1"
        model = tiny_model(
            **{"adaptation_conf": {}, **options},
            speech_input="tokens",
            speech_tokenizer=str(tmp_path),
            speech_embedder_conf=dict(num_time_mask=0),
            frontend_conf={},
            model_conf={"prompt": "Transcript:", **model_conf},
        )
        return randomise(model.train(), seed=3)

    return make


def batch(which=slice(None), before=False):
    """Utterances of tokens, padding at random."""
    generator = torch.Generator().manual_seed(0)

    def draw(high, *size):
        return torch.randint(high, size, generator=generator)

    lengths = {
        name: torch.tensor(numbers)
        for name, numbers in (
            ("speech", FRAMES),
            ("text", TEXTS),
            ("text_ctc", TEXTS),
            ("text_before", BEFORE),
        )
    }
    values = dict(
        speech=draw(3, 3, 90, 2),
        text=40 + draw(200, 3, 9),
        text_ctc=2 + draw(5, 3, 9),
        text_before=40 + draw(200, 3, 4),
    )
    values.update({f"{name}_lengths": numbers for name, numbers in lengths.items()})
    if not before:
        del values["text_before"], values["text_before_lengths"]
    return {name: value[which] for name, value in values.items()}


def losses_and_gradients(model, **inputs):
    loss, stats, _ = model(**inputs)
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return stats, gradients


def assert_alike(ours, theirs):
    (our_stats, our_gradients), (stats, gradients) = ours, theirs
    assert our_stats.keys() == stats.keys()
    for name in stats:
        torch.testing.assert_close(our_stats[name], stats[name], atol=1e-5, rtol=0)
    assert our_gradients.keys() == gradients.keys() != set()
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max()) + 1e-6
        difference = float((our_gradients[name] - gradient).abs().max())
        assert difference <= 1e-5 * max(scale, 1), name


@pytest.mark.parametrize("before", [False, True], ids=["", "text before"])
def test_losses_and_gradients_are_those_of_the_padded_batch(make, before):
    conf = dict(ctc_weight=0.3 if before else 0.0)
    padded = losses_and_gradients(make(**conf), **batch(before=before))
    packed = losses_and_gradients(make(**conf, packing=True), **batch(before=before))
    assert_alike(packed, padded)


def test_checkpointed_layers_keep_utterances_apart_when_they_recompute(make):
    padded = losses_and_gradients(make(), **batch())
    model = make(packing=True)
    model.lm.gradient_checkpointing_enable({"use_reentrant": False})
    assert_alike(losses_and_gradients(model.train(), **batch()), padded)


def test_nothing_of_an_utterance_reaches_another(make):
    model = make(packing=True, ctc_weight=0.0).eval()
    inputs = batch()
    changed = {name: values.clone() for name, values in inputs.items()}
    changed["speech"][1] = (changed["speech"][1] + 1) % 3
    changed["text"][1] += 1

    def hidden(inputs):
        embedded = model.embed_speech(inputs["speech"], inputs["speech_lengths"])
        seq = model.join_text(*embedded, inputs["text"], inputs["text_lengths"])
        seq = pack(seq)
        output = model.upper(model.lower(seq), seq)[0]
        lengths = seq.lengths_B.tolist()
        return output[: sum(lengths)].split(lengths)

    with torch.no_grad():
        for b, (ours, theirs) in enumerate(zip(hidden(inputs), hidden(changed))):
            assert torch.equal(ours, theirs) == (b != 1)


def test_work_is_counted_by_utterance(make):
    work = {}
    for packing in (False, True):
        model = make(packing=packing)
        counter = WorkCounter(model)
        model(**batch())
        work[packing] = counter.take()
    assert work[True]._replace(padded=0) == work[False]._replace(padded=0)
    assert work[True].positions == sum(FRAMES) + sum(TEXTS) + 3 * len(model.prompt_ids)
    assert 0 <= work[True].padded - work[True].positions < 16
    assert work[False].padded - work[False].positions > 100


def test_ctc_compression_and_its_warm_up_pack_too(
    tiny_model, tiny_batch, adaptation_conf, randomise
):
    results = {}
    for packing in (False, True):
        model = tiny_model(
            adaptation_conf=adaptation_conf("e_branchformer", "speech", (-1,)),
            model_conf=dict(
                prompt="Transcript:",
                ctc_compression=True,
                ctc_warmup_epochs=1,
                packing=packing,
            ),
        )
        randomise(randomise(model.train(), seed=3).ctc, seed=4, std=0.3)
        for epoch in (1, 2):
            model.set_epoch(epoch)
            inputs = tiny_batch(1.3, 0.6, 0.98)
            results[packing, epoch] = losses_and_gradients(model, **inputs)
    for epoch in (1, 2):
        assert_alike(results[True, epoch], results[False, epoch])


def test_a_model_that_packs_decodes_as_one_that_does_not(
    tiny_model, tiny_batch, randomise
):
    batch, decoded = tiny_batch(1.3, 0.6), []
    for packing in (False, True):
        model = tiny_model(model_conf=dict(prompt="Transcript:", packing=packing))
        encoded = encode(
            randomise(model.eval(), seed=3), batch["speech"], batch["speech_lengths"]
        )
        search = SearchConfig.make({"maxlenratio": 0.2})
        decoded.append(greedy_search(model, encoded, search))
    assert repr(decoded[0]) == repr(decoded[1]) and decoded[0]


# -- rows ------------------------------------------------------------------------------


def test_a_row_holds_the_utterances_one_after_the_other():
    speech = torch.tensor([[1.0, 2, 3], [4, 5, 0]])[..., None]
    text = torch.tensor([[6.0, 0, 0], [7, 8, 9]])[..., None]
    parts = speech, torch.tensor([3, 2]), text, torch.tensor([1, 3])
    padded = join(*parts, "right")
    seq = pack(padded)
    assert seq.inputs_BTD[..., 0].tolist() == [[1, 2, 3, 6, 4, 5, 7, 8, 9] + 7 * [0]]
    positions = [[0, 1, 2, 3, 0, 1, 2, 3, 4] + 7 * [0]]
    assert seq.packing["position_ids"].tolist() == positions
    assert seq.packing["cu_seq_lens_q"].tolist() == [0, 4, 9, 16]
    row = seq.packing["row"]
    assert torch.equal(row.unpack(seq.inputs_BTD), padded.inputs_BTD)
    assert row.places(torch.tensor([0, 3, 5, 9])).tolist() == [0, 3, 4, 8]
    assert seq.starts_B.tolist() == [0, 4]
    speech_BSD = seq.of_speech(seq.inputs_BTD, 3)[..., 0]
    assert speech_BSD[0].tolist() == [1, 2, 3] and speech_BSD[1, :2].tolist() == [4, 5]


# -- attention -------------------------------------------------------------------------


def test_rows_that_are_not_packed_have_the_logits_of_sdpa(tiny_lm):
    lm, _ = tiny_lm
    ids = torch.arange(3, 15).view(2, 6)
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        expected = lm(ids, attention_mask=mask).logits
        use_packed_attention(lm)
        assert torch.equal(lm(ids, attention_mask=mask).logits, expected)


def test_flash_attention_is_given_the_bounds_of_the_utterances(make, monkeypatch):
    """Flash attention runs on GPUs only: its place is taken by attention on a CPU."""
    calls = []

    def varlen(query, key, value, mask, cu_seq_lens_q, max_length_q, **kwargs):
        assert mask is None and kwargs["is_causal"]
        assert torch.equal(kwargs["cu_seq_lens_k"], cu_seq_lens_q)
        lengths = cu_seq_lens_q.diff().tolist()
        assert max(lengths) <= max_length_q == kwargs["max_length_k"]
        calls.append(lengths)
        parts = [x.transpose(1, 2).split(lengths, 2) for x in (query, key, value)]
        attended = [
            torch.nn.functional.scaled_dot_product_attention(
                *qkv, is_causal=True, scale=kwargs["softmax_scale"], enable_gqa=True
            )
            for qkv in zip(*parts)
        ]
        return torch.cat(attended, dim=2).transpose(1, 2)

    monkeypatch.setattr(flash_attention, "_flash_attention_forward", varlen)
    padded = losses_and_gradients(make(ctc_weight=0.0), **batch())
    model = make(ctc_weight=0.0, packing=True)
    if getattr(model.lm.config, "depth_up_scaling", {}).get("scope") == "speech":
        pytest.skip("the speech is gathered, not packed")
    model.lm.config._attn_implementation_internal = "flash_attention_2"
    packed = losses_and_gradients(model, **batch())
    assert len(calls) >= len(model.lm.model.layers)
    assert_alike(packed, padded)


@pytest.mark.parametrize(
    "option, message",
    [
        (dict(_attn_implementation_internal="eager"), "'eager' .* across utterances"),
        (dict(sliding_window=6), "a window of 6 positions"),
    ],
)
def test_attention_that_cannot_keep_utterances_apart_is_refused(
    tiny_lm, option, message
):
    lm, _ = tiny_lm
    for name, value in option.items():
        setattr(lm.config, name, value)
    with pytest.raises(ValueError, match=message):
        use_packed_attention(lm)
