"""The line in the log: what it counts, and that it comes."""

import logging
import math
import re
from types import SimpleNamespace

import pytest
import torch
from espnet2.train.reporter import Reporter
from training_helpers import load

from espnet_dus.training import throughput
from espnet_dus.training.flops import training_flops
from espnet_dus.training.resume import Epoch, ResumableBatches
from espnet_dus.training.throughput import Figures, ThroughputLog, WorkCounter


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    return now


def test_the_work_of_batches_is_summed_up(tiny_model, tiny_batch):
    model = tiny_model().train()
    counter = WorkCounter(model)
    batches = [tiny_batch(0.9, 0.5), tiny_batch(0.7, which=[0])]
    for batch in batches:
        model(**batch)
    with torch.no_grad():
        model.eval()(**batches[0])  # validation does not count
    work = counter.take()
    assert work.utterances == 3
    assert work.samples == 14400 + 8000 + 11200
    speech, text = [], []
    for batch in batches:
        speech += model.embed_speech(batch["speech"], batch["speech_lengths"])[1]
        text += batch["text_lengths"]
    total = [s + t + len(model.prompt_ids) for s, t in zip(speech, text)]
    assert work.speech == sum(speech) and work.speech_pairs == sum(
        s * s for s in speech
    )
    assert work.positions == sum(total) and work.pairs == sum(n * n for n in total)
    assert work.targets == sum(text) + 3
    assert work.padded > work.positions
    assert counter.take().utterances == 0
    counter.remove()
    model.train()(**batches[0])
    assert counter.take().utterances == 0


def test_with_ctc_compression_the_base_layers_read_fewer_positions(
    tiny_model, tiny_batch, adaptation_conf, randomise
):
    model = tiny_model(
        adaptation_conf=adaptation_conf("e_branchformer", "speech", (-1,)),
        model_conf=dict(
            prompt="Transcript:", ctc_compression=True, ctc_warmup_epochs=1
        ),
    ).train()
    randomise(model.ctc, seed=4, std=0.3)
    batch = tiny_batch(0.9, 0.5)
    speech_BSD, speech = model.embed_speech(batch["speech"], batch["speech_lengths"])
    hidden_BSD = model.hear(speech_BSD, speech)
    _, heard = model.compress(hidden_BSD, speech)
    read = heard + batch["text_lengths"] + len(model.prompt_ids)
    assert (heard < speech).any()
    counter = WorkCounter(model)
    for epoch, positions in ((1, speech), (2, read)):
        model.set_epoch(epoch)
        model(**batch)
        work = counter.take()
        assert work.utterances == 2 and work.targets == batch["text_lengths"].sum() + 2
        assert work.speech == speech.sum()
        assert work.positions == positions.sum()
        assert work.pairs == positions.square().sum()


def test_text_for_retention_is_not_work_of_the_batch(
    tiny_model, tiny_batch, adaptation_conf
):
    work = {}
    for weight in (0.0, 1.0):
        model = tiny_model(
            adaptation_conf=adaptation_conf("e_branchformer", "all", (-1,)),
            model_conf=dict(text_retention_weight=weight),
        ).train()
        counter = WorkCounter(model)
        model(**tiny_batch(0.9, 0.5))
        work[weight] = counter.take()
    assert work[0.0] == work[1.0]


def test_the_figures_are_those_of_the_time_since_the_last_line(
    tiny_model, tiny_batch, clock
):
    model = tiny_model().train()
    counter = WorkCounter(model)
    model(**tiny_batch(0.9, 0.5))
    one = counter.take()
    options = SimpleNamespace(
        log_interval=2, samples_per_second=16000, max_epoch=4, peak_tflops=1e-6
    )
    with Reporter().observe("train", 1) as reporter:
        batches = ResumableBatches([None] * 10)
        log = ThroughputLog(Epoch(model, [], reporter, batches, None), options)
        for n in range(4):
            reporter.register({"iter_time": 0.5})
            _, stats, weight = model(**tiny_batch(0.9, 0.5))
            reporter.register({"loss": float(n)}, weight)
            if n != 2:  # a skipped update
                reporter.register({"grad_norm": n})
            reporter.next()
            clock[0] += 2.0
            if n == 1:
                log.figures()
        figures = log.figures()
    assert figures.loss == 2.5 and figures.grad_norm == 3
    assert figures.audio_seconds_per_second == pytest.approx(2 * 1.4 / 4)
    assert figures.tokens_per_second == 2 * one.positions / 4
    assert figures.padding_share == pytest.approx(1 - one.positions / one.padded)
    assert figures.data_wait_share == 2 * 0.5 / 4
    flops = 2 * sum(training_flops(model.lm, model.speech_embedder, model.ctc, one))
    # relative positions are counted for one batch of the mean length
    assert figures.mfu == pytest.approx(flops / 4 / 1e6, rel=0.02)
    assert figures.epoch_seconds_left == 2.0 * 6
    assert figures.training_seconds_left == 2.0 * (6 + 3 * 10)
    assert 0.1 < figures.peak_memory_gb < 1000


def test_what_is_not_known_is_left_out():
    numbers = dict(zip(Figures._fields, [0.5] * len(Figures._fields)))
    assert "MFU 50.0%" in str(Figures(**numbers))
    numbers.update(mfu=math.nan, epoch_seconds_left=math.nan)
    line = str(Figures(**numbers))
    assert "MFU" not in line and "epoch done" not in line and "training done" in line


def test_a_training_writes_the_line_at_the_log_interval(train, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        options = dict(max_epoch=2, batch_size=1, log_interval=2, use_tensorboard=True)
        train(tmp_path, **options, peak_tflops=0.001)
    lines = [m for m in caplog.messages if "audio" in m]
    assert [re.match(r"(\d)epoch:train:(\d)/4batch", m).groups() for m in lines] == [
        ("1", "2"),
        ("1", "4"),
        ("2", "2"),
        ("2", "4"),
    ]
    for name in ("loss=", "grad_norm=", "tokens/s", "padding", "data wait", "MFU"):
        assert name in lines[0]
    assert list(tmp_path.glob("tensorboard/train/events*"))


def test_a_packed_training_has_the_same_losses_and_less_padding(
    train, tmp_path, caplog
):
    losses, padding = {}, {}
    for packing in (False, True):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            exp = train(
                tmp_path / str(packing),
                dropout_rate=0.0,
                max_epoch=1,
                log_interval=2,
                model_conf=dict(prompt="Transcript:", packing=packing),
            )
        epoch = load(exp / "checkpoint.pth")["reporter"]["stats"][1]
        losses[packing] = [epoch[part]["loss"] for part in ("train", "valid")]
        (line,) = [m for m in caplog.messages if "tokens/s, padding" in m]
        padding[packing] = float(re.search(r"padding ([\d.]+)%", line)[1])
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    # short rows: they are padded to a multiple of 16
    assert padding == {False: 24.2, True: 13.4}
