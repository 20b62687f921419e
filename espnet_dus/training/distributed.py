"""Several processes that train one model: what ESPnet's DDP set-up leaves open."""

import logging
from typing import Iterable, Iterator, List

import torch

DDP = torch.nn.parallel.DistributedDataParallel


def prepare_for_ddp(model: torch.nn.Module) -> None:
    """Leave what is frozen out of DDP: each process has loaded the same file.

    DDP reduces the gradients of trained parameters only, but at its start it would send
    all parameters from the first process to the others, and before each step all
    buffers.
    """
    names = [n for n, p in model.named_parameters() if not p.requires_grad]
    names += [n for n, _ in model.named_buffers()]
    DDP._set_params_and_buffers_to_ignore_for_model(model, names)
    logging.info(
        f"DDP: {len(names)} frozen parameters and buffers are not its business"
    )


def has_unused_parameters(model: torch.nn.Module) -> bool:
    """Tell whether some step trains only a part of the trained parameters.

    In the CTC warm-up the layers above the CTC head's do not run; without a weight the
    CTC head does not. DDP must then look for what has no gradient.
    """
    no_ctc_loss = model.ctc is not None and model.ctc_weight == 0
    return model.ctc_only or model.ctc_warmup_epochs > 0 or no_ctc_loss


def synchronize_last(
    model: torch.nn.Module, batches: Iterable, accum_grad: int
) -> Iterator:
    """Reduce gradients in the last batch of an accumulation only.

    What DDP's `no_sync` sets is set here: ESPnet's Trainer has no place for that
    context.

    Args:
        model: The model as it is trained; if it is not DDP's, nothing is done.
        batches: Of an epoch.
        accum_grad: Batches of an update.
    """
    for number, batch in enumerate(batches, 1):
        if isinstance(model, DDP):
            model.require_backward_grad_sync = number % accum_grad == 0
        yield batch


def share_of_mean(counts: List[torch.Tensor], batch_size: int) -> List[torch.Tensor]:
    """Give factors that turn means over this process's share into global means.

    ESPnet's Trainer averages the losses of all processes, weighted by the number of
    utterances. A mean over tokens must be weighted by the number of tokens, or those of
    a share with few would count more than others. A mean times its factor, averaged as
    the Trainer does it, is the mean over the tokens of all processes.

    Args:
        counts: Of what the means are over: tokens, for instance. Scalars.
        batch_size: Utterances of this process.

    Returns:
        A factor for each count; 1 where a process trains alone.
    """
    local = torch.stack([c.double() for c in counts])
    if not torch.distributed.is_initialized():
        return list(torch.ones_like(local).float())
    totals = torch.cat([local, local.new_tensor([batch_size])])
    torch.distributed.all_reduce(totals)
    return list((local / totals[:-1] * totals[-1] / batch_size).float())
