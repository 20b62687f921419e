"""What users of transformers expect of a causal LM, on an exported model.

The list follows the common tests of transformers (`ModelTesterMixin`,
`GenerationTesterMixin`).
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from espnet_dus.hf import (
    DUSConfig,
    DUSFeatureExtractor,
    DUSForCausalLM,
    DUSProcessor,
)

IDS = torch.arange(3, 40)[None]
TO_THE_LIMIT = dict(max_new_tokens=8, eos_token_id=[], do_sample=False)


@pytest.fixture(
    params=[("e_branchformer", "all"), ("transformer", "speech")], ids="-".join
)
def model(request, tiny_lm, randomise):
    """A model in some training state, without dropout."""
    kind, scope = request.param
    conf = dict(cgmlp_linear_units=32, cgmlp_conv_kernel=5)
    config = DUSConfig(
        text_config=tiny_lm[0].config.to_dict(),
        depth_up_scaling=dict(
            kind=kind,
            scope=scope,
            positions=[-1, 1, 2],
            layer_conf=conf if kind == "e_branchformer" else {},
        ),
        input_size=20,
        speech_embedder_conf=dict(channels=8, dropout_rate=0.0),
        prompt_ids=[5, 6],
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DUSForCausalLM(config).eval()
    return randomise(model, seed=1)


@pytest.fixture
def speech():
    """Features of two utterances, of 200 and 120 frames."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 200, dtype=torch.long)
    mask[1, 120:] = 0
    feats = torch.randn(2, 200, 20, generator=generator)
    return dict(input_features=feats, attention_mask=mask)


def gradients(model, **inputs):
    model.zero_grad()
    model(**inputs).logits.sum().backward()
    return {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def test_gradient_checkpointing_computes_the_same_gradients(model, speech):
    model.train()
    expected = gradients(model, input_ids=IDS.repeat(2, 1), **speech)
    calls = []
    inner = model.lm.model.layers[1].input_layernorm
    inner.register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable()
    ours = gradients(model, input_ids=IDS.repeat(2, 1), **speech)
    assert len(calls) == 2  # forward, and again in the backward pass
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[name])


@torch.no_grad()
def test_resized_embeddings_keep_the_other_logits_and_are_saved(
    model, speech, tmp_path
):
    before = model(**speech).logits
    model.resize_token_embeddings(310)
    after = model(**speech).logits
    assert after.size(-1) == 310
    torch.testing.assert_close(after[..., :300], before)
    assert model.config.text_config.vocab_size == 310
    beams = model.generate(**speech, num_beams=2, **TO_THE_LIMIT)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(**speech).logits, after)
    assert torch.equal(again.generate(**speech, num_beams=2, **TO_THE_LIMIT), beams)


@pytest.mark.parametrize("added_layers", ["kept", "dropped"])
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(model, added_layers):
    alone = model.generate(IDS, added_layers=added_layers, **TO_THE_LIMIT)
    padded = torch.cat([torch.full((1, 5), 2), IDS], dim=1)
    batch = torch.cat([padded, torch.arange(50, 92)[None]])
    mask = torch.ones_like(batch)
    mask[0, :5] = 0
    together = model.generate(
        batch, attention_mask=mask, added_layers=added_layers, **TO_THE_LIMIT
    )
    assert torch.equal(together[0, 5:], alone[0])


@torch.no_grad()
def test_speech_in_a_batch_and_alone_is_answered_alike(model, speech):
    together = model.generate(**speech, **TO_THE_LIMIT)
    alone = model.generate(
        input_features=speech["input_features"][1:, :120], **TO_THE_LIMIT
    )
    assert torch.equal(together[1:], alone)


@torch.no_grad()
def test_beams_with_and_without_a_cache_are_the_same(model, speech):
    for inputs in (speech, dict(input_ids=IDS, added_layers="kept")):
        cached = model.generate(**inputs, num_beams=3, **TO_THE_LIMIT)
        whole = model.generate(**inputs, num_beams=3, use_cache=False, **TO_THE_LIMIT)
        assert torch.equal(cached, whole)


@torch.no_grad()
def test_a_static_cache_generates_the_same(model, speech):
    for inputs in (speech, dict(input_ids=IDS, added_layers="kept")):
        expected = model.generate(**inputs, **TO_THE_LIMIT)
        static = model.generate(**inputs, cache_implementation="static", **TO_THE_LIMIT)
        assert torch.equal(static, expected)


@torch.no_grad()
def test_assisted_decoding_of_text_generates_the_same(model, tiny_lm):
    expected = model.generate(IDS, added_layers="kept", **TO_THE_LIMIT)
    for draft in (dict(assistant_model=tiny_lm[0]), dict(prompt_lookup_num_tokens=2)):
        ids = model.generate(IDS, added_layers="kept", **draft, **TO_THE_LIMIT)
        assert torch.equal(ids, expected)


@torch.no_grad()
def test_drafts_behind_speech_are_looked_up_not_written_by_an_assistant(
    model, speech, tiny_lm
):
    one = {name: value[:1] for name, value in speech.items()}
    expected = model.generate(**one, **TO_THE_LIMIT)
    ids = model.generate(**one, prompt_lookup_num_tokens=2, **TO_THE_LIMIT)
    assert torch.equal(ids, expected)
    with pytest.raises(ValueError, match="assistant_model: an assistant cannot read"):
        model.generate(**one, assistant_model=tiny_lm[0])


def test_a_loss_is_computed_for_text_and_refused_with_speech(model, speech):
    out = model(IDS, labels=IDS)
    expected = torch.nn.functional.cross_entropy(out.logits[0, :-1], IDS[0, 1:])
    torch.testing.assert_close(out.loss, expected)
    with pytest.raises(ValueError, match="labels: the loss is computed for text alone"):
        model(IDS.repeat(2, 1), labels=IDS.repeat(2, 1), **speech)


@torch.no_grad()
def test_text_is_the_base_lms_unless_the_configuration_keeps_the_layers(
    model, tmp_path
):
    kept = model(IDS, added_layers="kept").logits
    dropped = model(IDS, added_layers="dropped").logits
    is_exact = model.config.depth_up_scaling["scope"] == "speech"
    assert torch.equal(kept, dropped) is is_exact
    assert torch.equal(model(IDS).logits, dropped)
    model.save_pretrained(tmp_path)
    for choice, expected in (("kept", kept), ("dropped", dropped)):
        again = AutoModelForCausalLM.from_pretrained(tmp_path, added_layers=choice)
        assert torch.equal(again(IDS).logits, expected)
        ids = again.generate(IDS, max_new_tokens=1, eos_token_id=[])
        assert ids[0, -1] == expected[0, -1].argmax()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_model_is_loaded_on_a_device_and_in_a_precision(
    model, speech, tmp_path, dtype
):
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map="auto", torch_dtype=dtype
    )
    assert again.get_input_embeddings().weight.dtype == dtype
    added = again.lm.model.layers[0].parameters()
    assert {p.dtype for p in added} == {torch.float32}  # as in training
    expected = model.state_dict()
    for name, value in again.state_dict().items():
        assert torch.equal(value.cpu(), expected[name].to(value.dtype)), name
    on_device = {name: value.to(again.device) for name, value in speech.items()}
    ids = again.generate(**on_device, max_new_tokens=3)
    assert len(ids) == 2 and ids.device == again.device


@torch.no_grad()
def test_lm_eval_scores_the_exported_directory(model, tiny_lm, tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    tokenizer = tiny_lm[1]
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    request = Instance("loglikelihood", {}, ("the cat", " sat on"), 0)
    prompt = Instance("generate_until", {}, ("the cat", {"max_gen_toks": 4}), 0)
    context = tokenizer("the cat", return_tensors="pt").input_ids
    text = tokenizer("the cat sat on", return_tensors="pt").input_ids
    for choice in ("kept", "auto"):
        args = f"pretrained={tmp_path},device=cpu,added_layers={choice}"
        harness = get_model("hf").create_from_arg_string(args)
        log_probs = model(text, added_layers=choice).logits.log_softmax(-1)[0, :-1]
        of_text = log_probs.gather(1, text[0, 1:, None])[context.size(1) - 1 :]
        ((score, _),) = harness.loglikelihood([request])
        assert score == pytest.approx(float(of_text.sum()), abs=1e-4)
        ids = model.generate(
            context, added_layers=choice, max_new_tokens=4, do_sample=False
        )
        (answer,) = harness.generate_until([prompt])
        expected = tokenizer.decode(ids[0, context.size(1) :], skip_special_tokens=True)
        assert answer == expected


@torch.no_grad()
def test_a_model_pushed_to_the_hub_comes_back(
    model, speech, tiny_lm, tmp_path, monkeypatch
):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    def no_card(*_, **__):
        raise EntryNotFoundError("no README.md yet")

    def commit(_, repo_id, operations, **__):
        assert repo_id == "user/model"
        for operation in operations:
            path = tmp_path / "hub" / operation.path_in_repo
            path.parent.mkdir(exist_ok=True)
            with operation.as_file() as file:
                path.write_bytes(file.read())

    def create(_, repo_id, **__):
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    monkeypatch.setattr(huggingface_hub.ModelCard, "load", no_card)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", commit)
    processor = DUSProcessor(DUSFeatureExtractor(feature_size=20), tiny_lm[1])
    for part in (model, processor):
        part.push_to_hub("user/model")
    assert not list((tmp_path / "hub").glob("*.py"))  # no code
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
    assert torch.equal(again(**speech).logits, model(**speech).logits)
    feats = AutoProcessor.from_pretrained(tmp_path / "hub")(
        speech["input_features"][0].numpy()
    )
    assert torch.equal(feats["input_features"], speech["input_features"][:1])


def test_layers_that_a_plain_model_cannot_hold_are_not_saved_without_a_word(
    upscaled, kind_and_scope, tmp_path
):
    lm = upscaled(*kind_and_scope, seed=3)
    if kind_and_scope == ("transformer", "all"):
        lm.save_pretrained(tmp_path)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert len(plain.model.layers) == 7
        torch.testing.assert_close(plain(IDS).logits, lm(IDS).logits)
        return
    with pytest.raises(ValueError, match="a plain llama model cannot hold added"):
        lm.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
