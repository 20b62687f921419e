"""Non-finite updates: skipped, counted, named, and too many an error."""

import math

import pytest
import torch
from espnet2.train.reporter import Reporter
from training_helpers import load

from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.training.nonfinite import NonfiniteSteps, spoil_nonfinite_loss


@pytest.fixture
def spoil(monkeypatch):
    """Return a function that spoils the loss of an utterance in training."""
    forward = ESPnetDUSModel.forward

    def make(utt_id, value):
        def spoilt(self, utt_id=utt_id, **batch):
            loss, stats, weight = forward(self, **batch)
            if self.training and bad in utt_id:
                loss = loss + value
            return loss, stats, weight

        bad = utt_id
        monkeypatch.setattr(ESPnetDUSModel, "forward", spoilt)

    return make


# an infinite loss has a finite gradient here: adding a constant changes none
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_its_utterances_are_named(
    train, tmp_path, spoil, caplog, value
):
    spoil("utt2", value)
    train(tmp_path, max_epoch=2, batch_size=1, max_nonfinite_steps=1)
    lines = (tmp_path / "nonfinite_steps.txt").read_text().splitlines()
    assert [line.split(": ")[1] for line in lines] == ["utt2", "utt2"]
    assert [line.split()[1] for line in lines] == ["1", "2"]  # one in each epoch
    warnings = [m for m in caplog.messages if "update skipped" in m]
    assert len(warnings) == 2 and "(1 of at most 1 in epoch 2)" in warnings[1]
    state = load(tmp_path / "checkpoint.pth")
    for tensor in state["model"].values():
        assert tensor.isfinite().all()
    steps = {int(s["step"]) for s in state["optimizers"][0]["state"].values()}
    assert steps == {6}  # of eight batches, two skipped


def test_too_many_of_them_stop_the_training_and_say_where_to_look(
    train, tmp_path, spoil
):
    spoil("utt1", math.nan)
    message = "epoch 1: 1 updates had .* limit is 0"
    with pytest.raises(RuntimeError, match=message) as error:
        train(tmp_path, max_nonfinite_steps=0)
    assert "nonfinite_steps.txt" in str(error.value)
    assert "learning rate" in str(error.value)


def test_an_accumulation_names_all_of_its_utterances(train, tmp_path, spoil):
    spoil("utt0", math.nan)
    train(tmp_path, max_epoch=1, batch_size=1, accum_grad=2)
    (line,) = (tmp_path / "nonfinite_steps.txt").read_text().splitlines()
    assert len(line.split(": ")[1].split()) == 2 and "utt0" in line


def test_the_count_continues_after_an_interruption(train, tmp_path, spoil, monkeypatch):
    spoil("utt2", math.nan)
    options = dict(max_epoch=1, batch_size=1, save_interval_steps=1)
    with pytest.raises(RuntimeError):
        train(tmp_path, **options, max_nonfinite_steps=0)
    # the skipped update is behind the state saved before it: it is met again
    with pytest.raises(RuntimeError, match="1 updates had"):
        train(tmp_path, **options, max_nonfinite_steps=0)


def test_a_finite_loss_stays_what_it_is():
    loss = torch.tensor([1 / 3], requires_grad=True)
    spoilt, stats = spoil_nonfinite_loss(None, (), (loss, {}))
    assert torch.equal(spoilt, loss) and stats == {}
    spoilt.backward()
    assert loss.grad == 1


def test_negative_limits_are_errors(train, tmp_path):
    for option in ("save_interval_steps", "keep_step_checkpoints"):
        with pytest.raises(ValueError, match=f"{option}: -1 is below"):
            train(tmp_path, **{option: -1})


def test_an_overflow_of_the_scaled_gradient_is_not_counted(tmp_path):
    def step(reporter, loss, norm):
        reporter.register({"loss": loss, "forward_time": 0.1}, 1)
        if math.isfinite(norm):
            reporter.register({"grad_norm": norm})
        reporter.next()

    reporter = Reporter().start_epoch("train", 1)
    steps = NonfiniteSteps(reporter, tmp_path, limit=1, scaled_batches=1)
    for loss, norm, count in (
        (3.0, 1.0, 0),
        (3.0, math.inf, 0),  # by a large scale
        (math.nan, math.nan, 1),
    ):
        step(reporter, loss, norm)
        steps.check(["utt"])
        assert steps.count == count
    resumed = NonfiniteSteps(reporter, tmp_path, limit=1, scaled_batches=1)
    assert resumed.count == 1
