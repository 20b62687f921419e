"""Lines that only a GPU runs: listed in doc/gpu.md and run with a faked GPU."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from espnet2.torch_utils.device_funcs import to_device
from espnet2.train.reporter import Reporter

import espnet_dus
from espnet_dus.bin.training import find_batch
from espnet_dus.data.speech_tokens import devices
from espnet_dus.evaluation.text import models
from espnet_dus.model.base_lm import resolve_dtype
from espnet_dus.task import DUSTask
from espnet_dus.training import (
    batch_search,
    distributed,
    flops,
    resume,
    throughput,
    trainer,
)

PACKAGE = Path(espnet_dus.__file__).parent


@pytest.fixture
def gpu(monkeypatch):
    """Two GPUs of 140 GB whose functions answer, without a place for tensors."""
    state = torch.arange(5, dtype=torch.uint8)
    fake = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        is_bf16_supported=lambda: True,
        device_count=lambda: 2,
        get_device_name=lambda device=None: "NVIDIA H200",
        get_device_properties=lambda device: SimpleNamespace(total_memory=140e9),
        empty_cache=lambda: None,
        reset_peak_memory_stats=lambda: None,
        max_memory_reserved=lambda: 7_000_000_000,
        max_memory_allocated=lambda: 6_000_000_000,
        get_rng_state=lambda: state,
        set_rng_state=lambda new: vars(fake).update(restored=new),
    )
    for name, function in vars(fake).items():
        monkeypatch.setattr(torch.cuda, name, function)
    return fake


def names_a_gpu(node):
    if isinstance(node, ast.Attribute):
        return node.attr in ("cuda", "is_cuda")
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.fullmatch("cuda(:.*)?|nccl", node.value) is not None
    return False


def test_the_files_that_have_such_lines_are_listed():
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(map(names_a_gpu, ast.walk(ast.parse(path.read_text("utf-8")))))
    }
    page = (PACKAGE.parent / "doc/gpu.md").read_text(encoding="utf-8")
    section = page.partition("## 6. ")[2]
    assert set(re.findall(r"^\|`([\w/.]+)`\|", section, re.MULTILINE)) == found


def test_dtype_auto_is_bfloat16_where_the_gpu_computes_in_it(gpu, monkeypatch):
    assert resolve_dtype("auto") == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert resolve_dtype("auto") == torch.float32


def test_jobs_of_stage_3_take_the_gpus_in_turn(gpu, monkeypatch):
    for pid, device in ((6, "cuda:0"), (7, "cuda:1")):
        monkeypatch.setattr(devices.os, "getpid", lambda: pid)
        assert devices.device_of_process() == device
    most = 2 * devices.JOBS_PER_GPU
    assert [devices.num_jobs(n) for n in (1, most, 99)] == [1, most, most]


def test_text_is_evaluated_on_the_gpu(gpu, monkeypatch, tiny_base_lm_dir):
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: device)
    tokenizer = SimpleNamespace(eos_token_id=0)
    evaluated = models.Models(tiny_base_lm_dir)
    assert evaluated._ready(torch.nn.Linear(1, 1), tokenizer) == "cuda"


def test_peak_and_memory_are_those_of_the_gpu(gpu):
    assert flops.peak_flops() == 989e12
    assert throughput.peak_memory() == 6_000_000_000


def test_the_gpu_s_random_state_is_restored(gpu):
    saved = resume.random_state()
    resume.restore_random_state(saved)
    assert torch.equal(gpu.restored, torch.arange(5, dtype=torch.uint8))


def test_the_memory_of_a_step_is_what_the_gpu_reserves(tiny_model, tiny_batch, request):
    model = tiny_model().train()
    request.getfixturevalue("gpu")  # the model is built without it
    assert batch_search._step_bytes_cuda(model, tiny_batch(0.9)) == 7_000_000_000
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_that_does_not_fit_has_no_memory(gpu):
    def model(**batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.zero_grad = lambda set_to_none: None
    assert batch_search._step_bytes_cuda(model, {}) is None


def test_find_batch_uses_nine_tenths_of_the_gpu(
    tiny_options, tiny_model, monkeypatch, tmp_path, request
):
    limits, options, built = [], tiny_options(), tiny_model()
    request.getfixturevalue("gpu")  # the model is built without it

    def find(model, optimizer, samples_of, lengths, max_bytes, most):
        limits.append(max_bytes)
        return {64: 3}

    monkeypatch.setattr(batch_search, "find_batch_sizes", find)
    monkeypatch.setattr(DUSTask, "build_model", lambda args: built)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)
    config = tmp_path / "train.yaml"
    config.write_text("optim: adamw\n")
    out = tmp_path / "sizes.yaml"
    find_batch(str(config), options.base_lm, out, cmd=[], lengths=[64])
    assert limits == [126_000_000_000]
    assert "NVIDIA H200" in out.read_text()


def test_nccl_is_given_tensors_on_the_gpu(gpu, monkeypatch):
    moved, to = [], torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device: moved.append(device) or to(self, "cpu")
    )
    group = dict(
        is_initialized=lambda: True,
        get_backend=lambda: "nccl",
        get_world_size=lambda: 2,
        all_gather=lambda gathered, own: [each.copy_(own) for each in gathered],
    )
    for name, function in group.items():
        monkeypatch.setattr(torch.distributed, name, function)
    assert distributed.gather_numbers([3, 4]).tolist() == [[3, 4], [3, 4]]
    assert moved == ["cuda"]


def test_batches_of_validation_go_to_the_gpu(tiny_model, tiny_batch, monkeypatch):
    devices = []
    monkeypatch.setattr(
        trainer, "to_device", lambda batch, device: devices.append(device) or batch
    )
    run = SimpleNamespace(stop_if_asked=lambda: None)
    options = SimpleNamespace(ngpu=1, no_forward_run=False, use_amp=False, run=run)
    batches = torch.utils.data.DataLoader([(["a"], tiny_batch(0.9))], batch_size=None)
    with Reporter().observe("valid", 1) as reporter:
        trainer.DUSTrainer.validate_one_epoch(
            tiny_model(), batches, reporter, options, None
        )
    assert devices == ["cuda"]


# -- ESPnet's options, as doc/gpu.md says ----------------------------------------------


def test_espnet_waits_for_the_copy_of_a_batch_from_pinned_memory(monkeypatch):
    copies = []
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *how: copies.append(how) or self
    )
    to_device({"speech": torch.ones(2)}, "cuda")
    ((device, _, non_blocking, _),) = copies
    assert device == "cuda" and non_blocking is False


def test_convolutions_are_deterministic_unless_asked_otherwise():
    assert DUSTask.get_parser().parse_args([]).cudnn_deterministic
