"""What checkpoints hold, and that they load where they belong and nowhere else."""

import argparse
import json
import shutil

import pytest
import torch
import yaml
from espnet2.main_funcs.average_nbest_models import average_nbest_models
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model
from espnet2.train.reporter import Reporter

from espnet_dus.model.build import load_model
from espnet_dus.model.checkpoint import (
    IDENTITY_KEY,
    check_init_param,
    checkpoint_sha256,
    parameter_counts,
)
from espnet_dus.task import DUSTask

ARMS = {
    "dus": {},
    "lora": dict(adaptation="lora", adaptation_conf={"rank": 2}),
    "full": dict(adaptation="full", adaptation_conf={}),
    "frozen": dict(adaptation="frozen", adaptation_conf={}),
}


@pytest.fixture
def build(tiny_model):
    """A model of an arm; base:0 is a CTC layer that each of them has."""

    def make(arm="dus", **options):
        options = {"model_conf": {"ctc_layer": "base:0"}, **ARMS[arm], **options}
        return tiny_model(**options)

    return make


def trained_values(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("arm", ARMS)
def test_a_checkpoint_holds_what_the_arm_trains_and_the_identity(build, arm):
    model = build(arm)
    buffers = {IDENTITY_KEY, "frontend.logmel.melmat"}
    assert set(model.state_dict()) == set(trained_values(model)) | buffers
    inserted = [n for n in model.state_dict() if n.startswith("lm.")]
    assert bool(inserted) == (arm != "frozen")


def test_full_saves_the_tied_lm_head_once(build):
    names = [n for n in build("full").state_dict() if "lm_head" in n or "embed_t" in n]
    assert names == ["lm.model.embed_tokens.weight"]


@pytest.mark.parametrize("arm", ARMS)
def test_a_checkpoint_loads_strictly_and_brings_everything_back(
    build, randomise, tmp_path, arm
):
    saved = randomise(build(arm), seed=1)
    torch.save(saved.state_dict(), tmp_path / "1epoch.pth")
    loaded = build(arm)
    loaded.load_state_dict(torch.load(tmp_path / "1epoch.pth"), strict=True)
    for (name, ours), theirs in zip(loaded.named_parameters(), saved.parameters()):
        assert torch.equal(ours, theirs), name
    assert loaded.lm.lm_head.weight is loaded.lm.model.embed_tokens.weight


def test_averaged_checkpoints_keep_the_identity(build, randomise, tmp_path):
    models = [randomise(build(), seed=epoch) for epoch in (1, 2, 3)]
    reporter = Reporter()
    for epoch, model in enumerate(models, 1):
        torch.save(model.state_dict(), tmp_path / f"{epoch}epoch.pth")
        reporter.set_epoch(epoch)
        with reporter.observe("valid") as sub:
            sub.register({"acc": torch.tensor(float(epoch))})
            sub.next()
    average_nbest_models(tmp_path, reporter, [("valid", "acc", "max")], nbest=3)
    averaged = build()
    averaged.load_state_dict(torch.load(tmp_path / "valid.acc.ave.pth"))
    for name, value in trained_values(averaged).items():
        expected = sum(dict(m.named_parameters())[name] for m in models) / 3
        torch.testing.assert_close(value, expected, msg=name)
    assert torch.equal(averaged.base_lm_identity, models[0].base_lm_identity)


def test_a_checkpoint_of_another_base_lm_is_an_error_that_names_both(
    build, other_base_lm
):
    state = build().state_dict()
    other = build(base_lm=str(other_base_lm))
    with pytest.raises(
        RuntimeError, match="on the base LM tiny-random-llama revision test .*is other "
    ):
        other.load_state_dict(state)


def test_the_same_weights_from_another_place_are_the_same_base_lm(
    build, tiny_base_lm_dir, tmp_path
):
    directory = shutil.copytree(tiny_base_lm_dir, tmp_path / "moved")
    identity = json.loads((directory / "identity.json").read_text())
    identity.update(name="owner/model", revision="main")
    (directory / "identity.json").write_text(json.dumps(identity))
    build(base_lm=str(directory)).load_state_dict(build().state_dict())


def test_wrong_and_missing_keys_are_an_error_even_where_espnet_loads_leniently(build):
    model = build()
    state = model.state_dict()
    state["decoder.weight"] = state.pop("speech_embedder.project.weight")
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state, strict=False)
    assert "1 keys missing (speech_embedder.project.weight)" in str(error.value)
    assert "does not have (decoder.weight)" in str(error.value)


def test_a_checkpoint_of_another_arm_is_an_error(build):
    with pytest.raises(
        RuntimeError, match=r"keys missing \(lm.model.layers.0.*, \.\.\."
    ):
        build("lora").load_state_dict(build("dus").state_dict(), strict=False)


def test_a_checkpoint_of_the_former_causal_layer_is_an_error_that_says_so(
    tiny_model, adaptation_conf
):
    model = tiny_model(adaptation_conf=adaptation_conf("e_branchformer", "all"))
    state = {
        name.replace(".cgmlp.", ".layer.cgmlp."): value
        for name, value in model.state_dict().items()
    }
    with pytest.raises(RuntimeError, match="was a causal E-Branchformer .*again"):
        model.load_state_dict(state, strict=False)


def test_a_checkpoint_without_identity_is_an_error(build):
    state = build().state_dict()
    del state[IDENTITY_KEY]
    with pytest.raises(RuntimeError, match=r"1 keys missing \(base_lm_identity\)"):
        build().load_state_dict(state, strict=False)


# -- as ESPnet loads them --------------------------------------------------------------


@pytest.fixture
def trained_dir(build, tiny_options, randomise, tmp_path):
    """A directory with config.yaml and a checkpoint, as training leaves it."""
    args = tiny_options(model_conf={"ctc_layer": "base:0"})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(randomise(build(), seed=1).state_dict(), tmp_path / "model.pth")
    return tmp_path


@pytest.fixture(params=[DUSTask.build_model_from_file, load_model])
def load(request):
    """ESPnet's way to load a model, and ours, which needs no task."""
    return lambda directory: request.param(
        directory / "config.yaml", directory / "model.pth"
    )


def test_a_loaded_model_is_the_trained_one(trained_dir, build, randomise, load):
    model, args = load(trained_dir)
    assert isinstance(args, argparse.Namespace)
    expected = randomise(build(), seed=1).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_loading_refuses_keys_that_do_not_fit(trained_dir, load):
    state = torch.load(trained_dir / "model.pth")
    state["ctc.extra"] = state.pop("ctc.norm.weight")
    torch.save(state, trained_dir / "model.pth")
    with pytest.raises(RuntimeError, match=r"ctc.norm.weight.*ctc.extra"):
        load(trained_dir)


def test_loading_refuses_another_base_lm(trained_dir, other_base_lm, load):
    config = yaml.safe_load((trained_dir / "config.yaml").read_text())
    config["base_lm"] = str(other_base_lm)
    (trained_dir / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(RuntimeError, match="tiny-random-llama.*other"):
        load(trained_dir)


def test_init_param_takes_over_a_whole_checkpoint(trained_dir, build):
    model = build()
    load_pretrained_model(str(trained_dir / "model.pth"), model, False)
    expected = torch.load(trained_dir / "model.pth")
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_init_param_takes_over_a_part(trained_dir, build):
    model, before = build("lora"), build("lora").state_dict()
    param = f"{trained_dir / 'model.pth'}:speech_embedder:speech_embedder"
    load_pretrained_model(param, model, False)
    expected = torch.load(trained_dir / "model.pth")
    for name, value in model.state_dict().items():
        source = expected if name.startswith("speech_embedder.") else before
        assert torch.equal(value, source[name]), name


@pytest.mark.parametrize(
    "names, message",
    [
        ("encoder:speech_embedder", "'encoder' matches no parameter of .*model.pth"),
        ("speech_embedder:encoder", "'encoder' is not a part of the model"),
        ("::speech_embedder,decoder", "'decoder' matches no parameter of"),
    ],
)
def test_a_name_in_init_param_that_matches_nothing_is_an_error(
    trained_dir, build, names, message
):
    path, model = trained_dir / "model.pth", build()
    for good in ("", ":speech_embedder", "::speech_embedder", ":::speech_embedder,lm"):
        check_init_param(f"{path}{good}", model)
    with pytest.raises(ValueError, match=f"init_param: {message}"):
        check_init_param(f"{path}:{names}", model)


def test_init_param_with_mismatches_ignored_takes_over_what_fits(trained_dir, build):
    model, before = build("lora"), build("lora").state_dict()
    load_pretrained_model(str(trained_dir / "model.pth"), model, True)
    expected = torch.load(trained_dir / "model.pth")
    for name, value in model.state_dict().items():
        source = before if "lora_" in name else expected
        assert torch.equal(value, source[name]), name


def test_init_param_of_another_base_lm_is_an_error(trained_dir, build, other_base_lm):
    model = build(base_lm=str(other_base_lm))
    with pytest.raises(RuntimeError, match="tiny-random-llama.*other"):
        load_pretrained_model(str(trained_dir / "model.pth"), model, False)


def test_the_digest_of_a_checkpoint_is_that_of_its_tensors(tmp_path):
    state = {"b": torch.ones(2), "a": torch.zeros((), dtype=torch.bfloat16)}
    torch.save(state, tmp_path / "1.pth")
    torch.save(dict(reversed(state.items())), tmp_path / "other.pth")
    same, other = tmp_path / "1.pth", tmp_path / "other.pth"
    assert same.read_bytes() != other.read_bytes()
    assert checkpoint_sha256(same) == checkpoint_sha256(other)
    state["b"][1] = 2
    torch.save(state, other)
    assert checkpoint_sha256(same) != checkpoint_sha256(other)


def test_tied_parameters_are_counted_once(build):
    model = build()
    counts = parameter_counts(model)
    total = sum(p.numel() for p in set(model.parameters()))
    assert counts["total"] == total == counts["trained"] + counts["frozen"]
    assert counts["frozen"] == sum(
        p.numel() for p in model.lm.parameters() if not p.requires_grad
    )
