"""Activation checkpointing computes the same again, and keeps less."""

import pytest
import torch

from espnet_dus.model.upscaling import inserted_layers


def gradients(model, batch):
    torch.manual_seed(3)
    model.train()
    kept = [0]

    def count(tensor):
        kept[0] += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss, _, _ = model(**batch)
    loss.backward()
    return (
        loss.detach(),
        {n: p.grad for n, p in model.named_parameters() if p.requires_grad},
        kept[0],
    )


@pytest.mark.parametrize("arm", ["dus", "lora"])
def test_gradients_are_equal_and_less_is_kept(
    tiny_model, tiny_batch, adaptation_conf, kind_and_scope, arm
):
    if arm == "dus":
        conf = adaptation_conf(*kind_and_scope)
        if kind_and_scope[0] == "e_branchformer":
            conf["dropout_rate"] = 0.1  # what is computed again draws the same
    elif kind_and_scope != ("transformer", "all"):
        pytest.skip("once is enough")
    else:
        conf = {"rank": 2}
    options = dict(adaptation=arm, adaptation_conf=conf)
    options["model_conf"] = {"ctc_layer": "base:1"}
    batch = tiny_batch(0.9, 0.5)
    loss, expected, kept = gradients(tiny_model(**options), batch)
    model = tiny_model(**options)
    model.lm.gradient_checkpointing_enable({"use_reentrant": False})
    again, found, kept_less = gradients(model, batch)
    assert torch.equal(loss, again)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    assert kept_less < 0.5 * kept
    # what is frozen drops nothing out all the same
    for layer in model.lm.model.layers:
        if not any(p.requires_grad for p in layer.parameters()):
            assert not any(child.training for child in layer.children())


def test_each_layer_is_computed_once_more_and_no_oftener(
    tiny_model, tiny_batch, adaptation_conf, kind_and_scope
):
    model = tiny_model(adaptation_conf=adaptation_conf(*kind_and_scope)).train()
    model.lm.gradient_checkpointing_enable({"use_reentrant": False})
    runs = {}
    for index, layer in inserted_layers(model.lm).items():
        linear = next(m for m in layer.modules() if isinstance(m, torch.nn.Linear))
        runs[index] = 0

        def count(*_, index=index):
            runs[index] += 1

        linear.register_forward_hook(count)
    model.train()(**tiny_batch(0.9, 0.5))[0].backward()
    assert set(runs.values()) == {2}


def test_a_training_with_it_ends_as_one_without(train, tmp_path):
    for name, on in (("with", True), ("without", False)):
        train(tmp_path / name, max_epoch=1, gradient_checkpointing=on)
    ours, theirs = (
        torch.load(tmp_path / name / "1epoch.pth") for name in ("with", "without")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
