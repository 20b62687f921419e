"""Several processes that train one model: what ESPnet's DDP set-up lacks."""

import logging
from typing import Dict, Iterable, Iterator, List, Sequence

import torch

DDP = torch.nn.parallel.DistributedDataParallel


def rank() -> int:
    """Return the rank of this process; 0 where a process trains alone."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that train."""
    is_distributed = torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_distributed else 1


def prepare_for_ddp(model: torch.nn.Module) -> None:
    """Exclude frozen parameters and buffers from DDP: each process has loaded them.

    DDP reduces the gradients of trained parameters only, but at its start it would send
    all parameters from the first process to the others, and before each step all
    buffers.
    """
    names = [n for n, p in model.named_parameters() if not p.requires_grad]
    names += [n for n, _ in model.named_buffers()]
    DDP._set_params_and_buffers_to_ignore_for_model(model, names)
    logging.info(f"DDP ignores {len(names)} frozen parameters and buffers")


def has_unused_parameters(model: torch.nn.Module) -> bool:
    """Return whether some step trains only a part of the trained parameters.

    In the CTC warm-up the layers above the CTC head's do not run; without a weight the
    CTC head does not. DDP must then look for what has no gradient.
    """
    no_ctc_loss = model.ctc is not None and model.ctc_weight == 0
    return model.ctc_only or model.ctc_warmup_epochs > 0 or no_ctc_loss


def synchronize_last(
    model: torch.nn.Module, batches: Iterable, accum_grad: int
) -> Iterator:
    """Reduce gradients in the last batch of an accumulation only.

    Sets what DDP's `no_sync` sets: ESPnet's Trainer cannot enter that context.

    Args:
        model: The model as it is trained; if it is not DDP's, nothing is done.
        batches: Of an epoch.
        accum_grad: Batches of an update.
    """
    for number, batch in enumerate(batches, 1):
        if isinstance(model, DDP):
            model.require_backward_grad_sync = number % accum_grad == 0
        yield batch


def gather_numbers(numbers: Sequence[float]) -> torch.Tensor:
    """Exchange a few numbers; all processes call this together.

    Returns:
        (processes, numbers), float64, on the CPU.
    """
    own = torch.tensor(numbers, dtype=torch.double)
    if not torch.distributed.is_initialized():
        return own[None]
    own = own.to("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    gathered = [torch.empty_like(own) for _ in range(world_size())]
    torch.distributed.all_gather(gathered, own)
    return torch.stack(gathered).cpu()


def sum_by_name(sums: Dict[str, List[float]]) -> Dict[str, List[float]]:
    """Add up numbers by name over the processes, which all call this together."""
    gathered = [sums]
    if torch.distributed.is_initialized():
        gathered = [{}] * world_size()
        torch.distributed.all_gather_object(gathered, sums)
    totals: Dict[str, List[float]] = {}
    for name, numbers in (item for one in gathered for item in one.items()):
        known = totals.get(name, [0.0] * len(numbers))
        totals[name] = [a + b for a, b in zip(known, numbers)]
    return totals
