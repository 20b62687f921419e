"""Several processes train what one would, and reduce no more than they must."""

import os
import subprocess
import sys

import pytest
import torch
from training_helpers import load

from espnet_dus.training.distributed import (
    DDP,
    gather_numbers,
    has_unused_parameters,
    prepare_for_ddp,
    sum_by_name,
    synchronize_last,
)

# Rank 1 gets a signal in the sixth of eight batches; both stop, and both go on.
PROGRAM = """
import os, signal, sys
import torch
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.task import DUSTask

rank, init, *command = sys.argv[1:]
forward, seen = ESPnetDUSModel.forward, []

def signalled(self, *args, **kwargs):
    if self.training:
        seen.append(kwargs["utt_id"])
        if len(seen) == 6 and rank == "1":
            os.kill(os.getpid(), signal.SIGTERM)
    return forward(self, *args, **kwargs)

ESPnetDUSModel.forward = signalled
codes = []
for attempt in "12":
    try:
        DUSTask.main(cmd=[*command, "--dist_init_method", f"file://{init}{attempt}"])
    except SystemExit as stopped:
        codes.append(stopped.code)
    torch.distributed.destroy_process_group()
print(codes, len(seen), len(seen[0]))
"""


def test_two_processes_train_as_one_does_and_resume_as_one(
    train, train_command, tmp_path
):
    # Plain SGD: parameters differ as the gradients do, by the order of summation: by up
    # to 1e-8, where means weighted by utterances gave 6e-6. Adam would blow up what the
    # gradients near zero differ by. Nothing is random.
    options = dict(
        shape_file="shape_of_three",
        batch_size=3,
        num_iters_per_epoch=4,
        max_epoch=2,
        accum_grad=2,
        optim="sgd",
        optim_conf={"lr": 0.05},
        scheduler=None,
        scheduler_conf={},
        specaug=None,
        specaug_conf={},
        ctc_conf={"dropout_rate": 0.0},
        dropout_rate=0.0,
    )
    one = train(tmp_path / "one", **options)
    command = train_command(tmp_path / "two", **options)
    command += ["--multiprocessing_distributed", "false", "--dist_backend", "gloo"]
    command += ["--dist_world_size", "2", "--dist_rank"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "init")]
            + [*command, str(rank)],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate() for process in processes]
    for (out, err), share in zip(outputs, (2, 1)):
        assert out.splitlines()[-1] == f"[75] 8 {share}", err[-3000:]

    ours, theirs = load(tmp_path / "two/2epoch.pth"), load(one / "2epoch.pth")
    start = load(one / "1epoch.pth")
    assert ours.keys() == theirs.keys()
    moved = 0
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-7)
        moved += (tensor - start[name]).abs().max() > 1e-4
    assert moved > 10  # far more than the tolerance
    for name in ("loss", "loss_ce", "loss_ctc", "grad_norm"):
        values = [
            load(path / "checkpoint.pth")["reporter"]["stats"][2]["train"][name]
            for path in (tmp_path / "two", one)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-4), name


# -- a group of one process ------------------------------------------------------------


@pytest.fixture
def group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_gradients_are_reduced_once_in_an_accumulation(group):
    reduced = []

    def note(state, bucket):
        reduced.append(bucket.buffer().numel())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model = DDP(torch.nn.Linear(3, 1))
    model.register_comm_hook(None, note)
    for n, batch in enumerate(synchronize_last(model, torch.ones(6, 2, 3), 3), 1):
        model(batch).sum().backward()
        assert len(reduced) == n // 3
    assert model.module.bias.grad == 12  # all batches count


def test_ddp_leaves_the_frozen_base_lm_alone(group, tiny_model):
    model = tiny_model()
    prepare_for_ddp(model)
    ddp = DDP(model)
    ignored = ddp.parameters_to_ignore
    for name, parameter in model.named_parameters():
        assert (name in ignored) == (not parameter.requires_grad)
    assert ignored >= {name for name, _ in model.named_buffers()}


@pytest.mark.parametrize(
    "conf, unused",
    [
        ({}, False),
        ({"ctc_warmup_epochs": 1}, True),
        ({"ctc_weight": 1.0}, True),
        ({"ctc_weight": 0.0}, True),
    ],
)
def test_parts_that_do_not_run_in_every_step_are_known(tiny_model, conf, unused):
    assert has_unused_parameters(tiny_model(model_conf=conf)) == unused


def test_numbers_are_exchanged_and_added_up(group):
    assert gather_numbers([5, True]).tolist() == [[5.0, 1.0]]
    sums = {"loss_ce": [7.5, 3.0], "acc": [2.0, 3.0]}
    assert sum_by_name(sums) == sums
