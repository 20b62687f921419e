"""The identity of a base LM, how it is loaded, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from espnet_dus.model.base_lm import (
    Identity,
    identify,
    load_base_lm,
    resolve_dtype,
    weights_sha256,
)

IDS = torch.arange(3, 30)[None]


@pytest.fixture
def source(tiny_base_lm_dir, tmp_path):
    """A HF directory of the user's own: no identity.json."""
    directory = shutil.copytree(tiny_base_lm_dir, tmp_path / "my_lm")
    (directory / "identity.json").unlink()
    return directory


def change(directory, **config):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def remove(directory, pattern):
    for path in directory.glob(pattern):
        path.unlink()


# -- identity --------------------------------------------------------------------------


def test_the_identity_does_not_depend_on_how_the_weights_are_spread(source, tmp_path):
    expected = weights_sha256(source)
    lm = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    lm.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert weights_sha256(tmp_path / "sharded") == expected

    weights = load_file(source / "model.safetensors")
    (tmp_path / "mixed").mkdir()
    for file, names in (("a", sorted(weights)[1::2]), ("b", sorted(weights)[::2])):
        part = {name: weights[name] for name in names}
        save_file(part, tmp_path / "mixed" / f"{file}.safetensors")
    assert weights_sha256(tmp_path / "mixed") == expected


@pytest.mark.parametrize("changed", ["value", "name", "dtype", "shape"])
def test_the_identity_depends_on_every_weight(source, changed):
    before = weights_sha256(source)
    weights = load_file(source / "model.safetensors")
    name, norm = "model.norm.weight", weights.pop("model.norm.weight")
    if changed == "value":
        norm[5] += 1e-6
    weights["a" if changed == "name" else name] = {
        "dtype": norm.to(torch.bfloat16),
        "shape": norm[None],
    }.get(changed, norm)
    save_file(weights, source / "model.safetensors")
    assert weights_sha256(source) != before


def test_bfloat16_weights_have_an_identity(source):
    weights = load_file(source / "model.safetensors")
    save_file(
        {n: w.bfloat16() for n, w in weights.items()}, source / "model.safetensors"
    )
    assert len(weights_sha256(source)) == 64


def test_tampered_weights_are_an_error(tiny_base_lm_dir, tmp_path):
    directory = shutil.copytree(tiny_base_lm_dir, tmp_path / "lm")
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, directory / "model.safetensors")
    for function in (identify, load_base_lm):
        with pytest.raises(ValueError, match=f"{directory}: the weights have changed"):
            function(directory)


def test_a_directory_without_identity_json_is_known_by_its_name(source):
    assert identify(source) == Identity("my_lm", "", weights_sha256(source))


# -- loading ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_lm_is_loaded_frozen_in_eval_mode_and_in_its_precision(
    tiny_base_lm_dir, dtype
):
    lm, tokenizer, identity = load_base_lm(tiny_base_lm_dir, dtype)
    assert not lm.training
    assert not any(p.requires_grad for p in lm.parameters())
    assert {p.dtype for p in lm.parameters()} == {getattr(torch, dtype)}
    assert tokenizer.decode(tokenizer("HELLO WORLD").input_ids) == "HELLO WORLD"
    assert identity.name == "tiny-random-llama"


def test_the_attention_implementation_is_the_one_asked_for(tiny_base_lm_dir):
    lm, _, _ = load_base_lm(tiny_base_lm_dir, "float32", "eager")
    assert lm.config._attn_implementation == "eager"


def test_auto_takes_bfloat16_where_the_hardware_computes_in_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda: supported  # noqa: B023
        )
        assert resolve_dtype("auto") == dtype


def test_an_unknown_dtype_is_an_error_that_names_the_known():
    with pytest.raises(
        ValueError, match="'int8' is not one of auto, float32, bfloat16"
    ):
        resolve_dtype("int8")


@pytest.mark.parametrize(
    "missing, message",
    [
        ("*.safetensors", "no weights"),
        ("config.json", "no config.json"),
        ("tokenizer*", "no tokenizer"),
    ],
)
def test_a_directory_that_lacks_something_is_an_error_that_names_it(
    source, missing, message
):
    remove(source, missing)
    with pytest.raises(ValueError, match=f"{source}: .*{message}"):
        load_base_lm(source)


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", None])
def test_another_architecture_is_an_error_that_names_it(source, architecture):
    change(source, architectures=architecture and [architecture])
    message = f"{source}/config.json: the architecture is {architecture or 'none'}"
    with pytest.raises(ValueError, match=message):
        load_base_lm(source)


@pytest.mark.parametrize(
    "key, value",
    [("final_logit_softcapping", 30.0), ("logits_scaling", 8), ("logit_scale", 0.06)],
)
def test_a_base_lm_that_changes_its_logits_is_refused(source, key, value):
    change(source, **{key: None})
    load_base_lm(source)
    change(source, **{key: value})
    with pytest.raises(ValueError, match=f"config.json: {key} is {value}: a base LM"):
        load_base_lm(source)


def test_code_in_a_directory_is_not_run_and_nobody_is_asked(source, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    change(source, model_type="newest", auto_map={"AutoConfig": "code.NewConfig"})
    (source / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(ValueError, match="my_lm.* custom code"):
        load_base_lm(source)


def test_weights_as_pickles_only_are_refused(source):
    weights = load_file(source / "model.safetensors")
    torch.save(weights, source / "pytorch_model.bin")
    remove(source, "*.safetensors")
    with pytest.raises(ValueError, match="no weights .*safetensors"):
        load_base_lm(source)
