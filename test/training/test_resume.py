"""Exact resume inside an epoch, whatever ended the process and wherever."""

import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from espnet2.train.reporter import Reporter
from training_helpers import Killed, assert_same, assert_same_training, load

from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.training.preemption import EXIT_CODE
from espnet_dus.training.resume import (
    ResumableBatches,
    random_state,
    reporter_state,
    restore_random_state,
    restore_reporter,
)

# four batches in an epoch, four epochs
LONG = dict(batch_size=1, save_interval_steps=1)
BATCHES = 4


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """A training that nothing interrupted."""
    return train(tmp_path_factory.mktemp("exp") / "whole", **LONG)


@pytest.fixture(scope="module")
def interrupted(train, tmp_path_factory):
    """A training that was interrupted in its second batch."""
    out_dir = tmp_path_factory.mktemp("exp") / "interrupted"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, train, out_dir, 2, **LONG)
    return out_dir


def at_batch(patch, number, action, training=True):
    """Do something in a training (or validation) batch, from 1."""
    loss_sums, seen = ESPnetDUSModel.loss_sums, []

    def acting(self, *args, **kwargs):
        if self.training == training:
            seen.append(number)
            if len(seen) == number:
                action()
        return loss_sums(self, *args, **kwargs)

    patch.setattr(ESPnetDUSModel, "loss_sums", acting)


def die():
    raise Killed


def interrupt(monkeypatch, train, out_dir, number, **options):
    with monkeypatch.context() as patch:
        at_batch(patch, number, die)
        with pytest.raises(Killed):
            train(out_dir, **options)


def places(out_dir):
    return sorted(path.name for path in (out_dir / "step_checkpoints").glob("*"))


# in the first epoch, after its first batch; in the middle; in the last batch of all
@pytest.mark.parametrize("number", [1, 2, BATCHES + 3, 4 * BATCHES])
def test_a_training_killed_in_any_batch_and_resumed_equals_an_uninterrupted_one(
    train, whole, tmp_path, monkeypatch, caplog, number
):
    caplog.set_level(logging.INFO)
    interrupt(monkeypatch, train, tmp_path, number, **LONG)
    epoch, done = divmod(number - 1, BATCHES)
    states = [f"{epoch + 1:04d}_{n:08d}" for n in range(1, done + 1)]
    assert places(tmp_path) == states[-2:]
    train(tmp_path, **LONG)
    for each in range(1, 5):
        assert caplog.text.count(f"epoch {each}: trained on 4 utterances") == 1
    assert_same_training(tmp_path, whole)
    assert not (tmp_path / "step_checkpoints").exists()


@pytest.mark.parametrize("number", [BATCHES + 1, 2])  # of epochs: after one, inside one
def test_a_schedule_in_shares_follows_a_larger_number_of_epochs(
    train, tmp_path, monkeypatch, number
):
    options = {**LONG, "scheduler_conf": {"warmup_steps": 0.5}}
    interrupt(monkeypatch, train, tmp_path, number, **options, max_epoch=2)
    train(tmp_path, **options, max_epoch=4)
    (state,) = load(tmp_path / "checkpoint.pth")["schedulers"]
    updates = 4 * BATCHES
    assert state["warmup_steps"] == updates / 2
    assert state["_last_lr"] == pytest.approx(
        [1e-3 * (updates / 2 / (updates + 1)) ** 0.5]
    )


def test_batches_already_done_are_not_read_again(train, tmp_path, monkeypatch):
    interrupt(monkeypatch, train, tmp_path, 4, **LONG)
    read = []
    loss_sums = ESPnetDUSModel.loss_sums

    def noting(self, *args, **kwargs):
        read.append(self.training)
        return loss_sums(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ESPnetDUSModel, "loss_sums", noting)
        train(tmp_path, **LONG, max_epoch=1)
    assert len(read) == 1 + BATCHES  # the last batch, and the validation


def test_a_signal_to_the_loader_of_validation_does_not_end_the_training(
    train, tmp_path, monkeypatch
):
    """A scheduler signals every process of a job."""
    loss_sums, signalled = ESPnetDUSModel.loss_sums, []

    def signalling(self, *args, **kwargs):
        if not self.training:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGTERM)
                signalled.append(child.pid)
            time.sleep(0.3)  # for one that dies of it to be seen
        return loss_sums(self, *args, **kwargs)

    monkeypatch.setattr(ESPnetDUSModel, "loss_sums", signalling)
    train(tmp_path, num_workers=1, max_epoch=1)
    assert signalled and (tmp_path / "1epoch.pth").is_file()


def test_accumulation_resumes_exactly(train, tmp_path, monkeypatch):
    # two updates in an epoch, the second of one batch and two fillers: states are saved
    # between updates only
    options = dict(batch_size=1, accum_grad=3, max_epoch=2, save_interval_steps=1)
    train(tmp_path / "whole", **options)
    interrupt(monkeypatch, train, tmp_path / "killed", 2 * 3 + 5, **options)
    assert places(tmp_path / "killed") == ["0002_00000003"]
    train(tmp_path / "killed", **options)
    for name in ("checkpoint.pth", "2epoch.pth"):
        ours, theirs = load(tmp_path / "killed" / name), load(tmp_path / "whole" / name)
        assert_same(ours, theirs)


def test_a_training_killed_by_sigkill_at_a_random_step_resumes_exactly(
    train, train_command, whole, tmp_path
):
    number = random.SystemRandom().randint(1, 4 * BATCHES)
    program = f"""
import os, signal
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.task import DUSTask
forward, seen = ESPnetDUSModel.forward, []
def dying(self, *args, **kwargs):
    if self.training:
        seen.append(1)
        if len(seen) == {number}:
            os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, *args, **kwargs)
ESPnetDUSModel.forward = dying
DUSTask.main(cmd={train_command(tmp_path, **LONG)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == -signal.SIGKILL, (number, done.stderr[-3000:])
    train(tmp_path, **LONG)
    assert_same_training(tmp_path, whole)


@pytest.mark.parametrize("name", ["shared.pth", "rank0of1.pth"])
def test_a_state_cut_short_is_noticed_and_the_one_before_it_taken(
    train, whole, tmp_path, monkeypatch, caplog, name
):
    interrupt(monkeypatch, train, tmp_path, BATCHES + 4, **LONG)
    before, newest = places(tmp_path)
    path = tmp_path / "step_checkpoints" / newest / name
    path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level(logging.INFO):
        train(tmp_path, **LONG)
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert any(newest in w and f"{name} differs" in w for w in warnings)
    assert any(
        f"from {tmp_path}/step_checkpoints/{before}" in m for m in caplog.messages
    )
    assert_same_training(tmp_path, whole)


def test_an_epoch_restarts_if_none_of_its_states_is_whole(
    train, whole, tmp_path, monkeypatch
):
    interrupt(monkeypatch, train, tmp_path, BATCHES + 4, **LONG)
    for path in tmp_path.glob("step_checkpoints/*/*.sha256"):
        path.unlink()
    train(tmp_path, **LONG)
    assert_same_training(tmp_path, whole)


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(batch_size=2), r"batch_size \(was 1, is 2\)"),
        (dict(batch_type="sorted"), "batch_type"),
        (dict(seed=3), r"seed \(was 0, is 3\)"),
        (dict(specaug_conf={"time_mask_width_range": 10}), "specaug_conf"),
        (dict(shape_file="shape_of_three"), "content of .*shape_of_three"),
        (dict(num_iters_per_epoch=3), r"num_iters_per_epoch \(was None, is 3\)"),
    ],
)
def test_an_interrupted_epoch_is_not_resumed_with_other_data(
    train, interrupted, tmp_path, change, named
):
    shutil.copytree(interrupted, tmp_path / "exp")
    with pytest.raises(ValueError, match=f"cannot be resumed.*{named}"):
        train(tmp_path / "exp", **{**LONG, **change})


def test_an_interrupted_epoch_is_not_resumed_with_other_transcripts(
    train, interrupted, tmp_path, corpus
):
    shutil.copytree(interrupted, tmp_path / "exp")
    text = (corpus / "text").read_text()
    try:
        (corpus / "text").write_text(text.replace("HELLO", "WORLD"))
        with pytest.raises(ValueError, match="cannot be resumed.*content of .*/text"):
            train(tmp_path / "exp", **LONG)
    finally:
        (corpus / "text").write_text(text)


def test_without_resume_nothing_of_an_earlier_training_is_taken(
    train, whole, tmp_path, monkeypatch
):
    interrupt(monkeypatch, train, tmp_path, 3, **LONG, optim_conf={"lr": 0.1})
    interrupt(monkeypatch, train, tmp_path, 1, **LONG, resume=False)
    assert places(tmp_path) == []
    train(tmp_path, **LONG)
    assert_same_training(tmp_path, whole)


# -- signals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, in_training", [(signal.SIGTERM, True), (signal.SIGUSR1, False)]
)
def test_a_signal_saves_the_step_and_exits_with_the_code_to_restart_on(
    train, whole, tmp_path, monkeypatch, number, in_training
):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    options = {**LONG, "save_interval_steps": 0}
    with monkeypatch.context() as patch:
        kill = lambda: os.kill(os.getpid(), number)  # noqa: E731
        at_batch(patch, BATCHES + 2, kill, in_training)
        with pytest.raises(SystemExit) as stopped:
            train(tmp_path, **options)
    assert stopped.value.code == EXIT_CODE == 75
    # after two of its batches, or all of them: the epoch's validation was cut short
    assert places(tmp_path) == [f"0002_{2 if in_training else BATCHES:08d}"]
    after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    assert after == handlers
    train(tmp_path, **options)
    assert_same_training(tmp_path, whole)


# -- parts of the state ----------------------------------------------------------------


def test_random_numbers_go_on():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    state = random_state()
    first = draw()
    restore_random_state(state)
    assert draw() == first != draw()


def test_the_reporter_continues():
    def steps(reporter, numbers):
        for n in numbers:
            reporter.register({"loss": float(n)}, weight=n)
            if n % 2:
                reporter.register({"grad_norm": 0.5 * n})
            reporter.next()

    reporter = Reporter()
    with reporter.observe("train", 1) as whole:
        steps(whole, range(1, 7))
    half = reporter.start_epoch("train", 1)
    steps(half, range(1, 4))
    resumed = reporter.start_epoch("train", 1)
    restore_reporter(resumed, reporter_state(half))
    steps(resumed, range(4, 7))
    assert resumed.total_count == whole.total_count == 6
    reporter.finish_epoch(resumed)
    ours = reporter.stats[1]["train"]
    with Reporter().observe("train", 1) as again:
        steps(again, range(1, 7))
    assert resumed.stats.keys() == again.stats.keys()
    assert ours["loss"] == sum(n * n for n in range(1, 7)) / 21
    assert ours["grad_norm"] == 0.5 * (1 + 3 + 5) / 3


class Streaming:
    """An iterator that knows its position."""

    def __init__(self):
        self.position = 0
        self.worker_init_fn = None

    def __iter__(self):
        while self.position < 6:
            self.position += 1
            yield [f"utt{self.position}"], {}

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Drawing:
    """A generator of batches that draws random numbers for each."""

    def __iter__(self):
        for n in range(6):
            yield [f"utt{n}"] * (n != 2), {"noise": torch.rand(1)}


@pytest.mark.parametrize("iterator", [Streaming, Drawing])
def test_iterators_of_all_kinds_go_on(iterator):
    torch.manual_seed(3)
    expected = list(ResumableBatches(iterator()))
    torch.manual_seed(3)
    first = ResumableBatches(iterator())
    batches = iter(first)
    begun = [next(batches) for _ in range(3)]
    state = first.state_dict()
    torch.manual_seed(3)
    second = ResumableBatches(iterator())
    second.load_state_dict(state)
    assert begun + list(second) == expected
    assert len(expected) == 5 + (iterator is Streaming)  # one of Drawing's is empty


@pytest.mark.parametrize("own", [None, print])
def test_loader_processes_leave_the_signals_to_the_training(own, monkeypatch):
    iterator = Streaming()
    iterator.worker_init_fn = own
    next(iter(ResumableBatches(iterator)))
    handlers = []
    monkeypatch.setattr(signal, "signal", lambda *args: handlers.append(args))
    iterator.worker_init_fn(3)
    ignored = [(signal.SIGTERM, signal.SIG_IGN), (signal.SIGUSR1, signal.SIG_IGN)]
    assert handlers == ignored
