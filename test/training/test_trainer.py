"""Checkpoints that are whole, and interruptions that change nothing."""

import json
import logging
from contextlib import contextmanager
from pathlib import Path

import pytest
from espnet2.train.reporter import Reporter
from training_helpers import Killed, assert_same, assert_same_training, load

from espnet_dus.io import atomic_path, read_scp
from espnet_dus.training import checkpoint_files, trainer
from espnet_dus.training.trainer import DUSTrainer


@pytest.fixture(scope="module")
def uninterrupted(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("exp") / "whole")


def die_in_epoch(monkeypatch, number):
    """Let the process die early in an epoch."""
    train_one_epoch = DUSTrainer.train_one_epoch.__func__

    def dying(cls, model, iterator, reporter, **kwargs):
        if reporter.get_epoch() == number:
            raise Killed
        return train_one_epoch(cls, model, iterator, reporter, **kwargs)

    monkeypatch.setattr(DUSTrainer, "train_one_epoch", classmethod(dying))


def die_before_saving(monkeypatch, name):
    """Let the process die while it writes a file."""

    @contextmanager
    def dying(path):
        with atomic_path(path) as temporary:
            if name in Path(path).name:
                temporary.write_bytes(b"half a checkp")
                raise Killed
            yield temporary

    for module in (trainer, checkpoint_files):
        monkeypatch.setattr(module, "atomic_path", dying)


def test_training_leaves_checkpoints_an_average_and_the_parameter_counts(uninterrupted):
    names = {path.name for path in uninterrupted.iterdir()}
    assert {
        "checkpoint.pth",
        "latest.pth",
        "valid.loss.ave.pth",
        "config.yaml",
    } <= names
    assert not [name for name in names if "tmp" in name]
    epochs = load(uninterrupted / "checkpoint.pth")["reporter"]["stats"]
    losses = [epochs[epoch]["train"]["loss"] for epoch in sorted(epochs)]
    assert len(losses) == 4 and losses[-1] < losses[0]
    counts = json.loads((uninterrupted / "params.json").read_text())
    assert (
        counts["trained"] + counts["frozen"] == counts["total"] > counts["trained"] > 0
    )
    assert counts["base_lm"]["name"] == "tiny-random-llama"
    curves = json.loads((uninterrupted / "training.json").read_text())["curves"]
    for phase in ("train", "valid"):
        stats = [epochs[epoch][phase]["loss_ce"] for epoch in sorted(epochs)]
        assert curves[phase] == stats and len(set(stats)) == 4


def test_a_training_killed_in_an_epoch_and_resumed_equals_an_uninterrupted_one(
    train, uninterrupted, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        die_in_epoch(patch, 3)
        with pytest.raises(Killed):
            train(tmp_path)
    assert load(tmp_path / "checkpoint.pth")["reporter"]["epoch"] == 2
    train(tmp_path)
    assert_same_training(tmp_path, uninterrupted)


@pytest.mark.parametrize("file, saved", [("checkpoint", 3), ("4epoch", 4)])
def test_a_training_killed_while_it_saves_and_resumed_equals_an_uninterrupted_one(
    train, uninterrupted, tmp_path, monkeypatch, file, saved
):
    with monkeypatch.context() as patch:
        die_in_epoch(patch, 4)
        with pytest.raises(Killed):
            train(tmp_path)
    with monkeypatch.context() as patch:
        die_before_saving(patch, file)
        with pytest.raises(Killed):
            train(tmp_path)
    assert load(tmp_path / "checkpoint.pth")["reporter"]["epoch"] == saved
    assert not (tmp_path / "4epoch.pth").exists()
    assert not list(tmp_path.glob(".*tmp*"))
    train(tmp_path)
    assert_same_training(tmp_path, uninterrupted)


def test_a_finished_training_started_again_trains_no_more(
    train, uninterrupted, monkeypatch
):
    before = load(uninterrupted / "checkpoint.pth")
    with monkeypatch.context() as patch:
        for epoch in range(1, 6):
            die_in_epoch(patch, epoch)
        train(uninterrupted)
    assert_same(load(uninterrupted / "checkpoint.pth"), before)


def test_the_warm_up_trains_ctc_alone_in_its_epochs(train, tmp_path):
    train(tmp_path, max_epoch=2, model_conf={"ctc_warmup_epochs": 1})
    epochs = load(tmp_path / "checkpoint.pth")["reporter"]["stats"]
    for phase in ("train", "valid"):
        assert "loss_ce" not in epochs[1][phase] and epochs[1][phase]["acc"] == 0
        assert "loss_ce" in epochs[2][phase]


def test_the_cost_of_a_training_is_that_of_all_its_parts(train, tmp_path, monkeypatch):
    def cost():
        return json.loads((tmp_path / "training.json").read_text())

    train(tmp_path, max_epoch=1)
    first = cost()
    with monkeypatch.context() as patch:  # killed: its second epoch counts all the same
        die_in_epoch(patch, 3)
        with pytest.raises(Killed):
            train(tmp_path, max_epoch=3)
    assert cost() == first
    train(tmp_path, max_epoch=3)
    whole = cost()
    reporter = Reporter()
    reporter.load_state_dict(load(tmp_path / "checkpoint.pth")["reporter"])
    seconds = [
        reporter.stats[epoch][phase]["time"].total_seconds()
        for epoch in (1, 2, 3)
        for phase in ("train", "valid")
    ]
    assert whole["wall_seconds"] == pytest.approx(sum(seconds), abs=0.06)
    assert (first["epochs"], whole["epochs"]) == (1, 3)
    epochs = [reporter.stats[epoch]["train"] for epoch in (1, 2, 3)]  # of equal length
    per_step = sum(epoch["train_time"] for epoch in epochs) / 3
    assert whole["seconds_per_step"] == pytest.approx(per_step, abs=1e-4)
    assert 10**8 < first["peak_memory_bytes"] <= whole["peak_memory_bytes"]
    assert whole["peak_memory_of"] == "process"


def test_the_memory_of_a_process_that_trains_nothing_does_not_count(train, tmp_path):
    train(tmp_path, max_epoch=1)
    path = tmp_path / "training.json"
    before = json.loads(path.read_text())
    path.unlink()  # as if trained by a version that did not write it
    train(tmp_path, max_epoch=1)
    after = json.loads(path.read_text())
    names = ("epochs", "curves", "seconds_per_step", "wall_seconds")
    assert after == {name: before[name] for name in names}


def test_bad_utterances_are_left_out_of_the_training(train, tmp_path, corpus, caplog):
    caplog.set_level(logging.INFO)
    speeches = read_scp(corpus / "wav.scp")
    whole = (corpus / "utt3.wav").read_bytes()
    try:
        (corpus / "utt3.wav").write_bytes(b"RIFF")
        with pytest.raises(RuntimeError, match="utterance utt3: "):
            train(tmp_path / "none", max_epoch=1)
        # a batch of nothing but the bad one
        train(tmp_path / "one", max_epoch=2, max_bad_utterances=1, batch_size=1)
    finally:
        (corpus / "utt3.wav").write_bytes(whole)
    lines = (tmp_path / "one" / "bad_utterances.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["utt3"]
    assert (tmp_path / "one" / "2epoch.pth").exists() and len(speeches) == 4
    for epoch in (1, 2):
        assert f"epoch {epoch}: trained on 3 utterances; those left" in caplog.text


@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_taken(
    train, uninterrupted, tmp_path, monkeypatch, caplog, both
):
    with monkeypatch.context() as patch:
        die_in_epoch(patch, 4)
        with pytest.raises(Killed):
            train(tmp_path)
    for name in ("checkpoint.pth", "checkpoint.previous.pth")[: 1 + both]:
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-100])
    if both:
        with pytest.raises(RuntimeError, match="is damaged: .*Remove it"):
            train(tmp_path)
        return
    train(tmp_path)
    (warning,) = [m for m in caplog.messages if "differs from its checksum" in m]
    assert "checkpoint.previous.pth is taken" in warning
    assert_same_training(tmp_path, uninterrupted)


# -- options ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(use_amp=True, use_tf32=True), "use_amp does not work .* use_tf32"),
        (dict(base_lm_conf={"dtype": "float16"}), "float16: small gradients become"),
        (
            dict(max_epoch=2, model_conf={"ctc_warmup_epochs": 2}),
            "ctc_warmup_epochs: 2 of 2 epochs .* the LLM would never be trained",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(train, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **options)
