"""Updates of several batches and processes that equal one of a big batch.

Losses are sums over tokens. Before the batches of an update are trained on, the
processes exchange how many target tokens and CTC units they hold, so that each batch
can be divided by the same number (`loss_denominators` of the model).

A process that has run out of batches keeps up with the others by fillers, whose loss
and gradient are zero, until none has any left: no batch of any process is lost, and the
last update of an epoch may be a smaller one.
"""

from itertools import islice
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple

import torch

from espnet_dus.model.ctc_head import placed
from espnet_dus.training.distributed import gather_numbers

Batch = Tuple[List[str], Dict[str, Any]]


def as_one_batch(
    batches: Iterable[Batch], accum_grad: int, num_positions: Callable[[int], int]
) -> Iterator[Batch]:
    """Add `loss_denominators` to the batches of each update; complete it by fillers.

    All processes call this together.

    Args:
        batches: Of an epoch, of this process.
        accum_grad: Batches of each process in an update.
        num_positions: Returns the speech positions of a length of the input.

    Yields:
        Ids and tensors of a batch; a filler has no ids.
    """
    batches = iter(batches)
    filler = None
    while True:
        window = list(islice(batches, accum_grad))
        if window:
            filler = _filler(window[-1])
        counts = [_count(batch, num_positions) for _, batch in window]
        totals = [sum(numbers) for numbers in zip(*counts)] or [0, 0]
        of_process = gather_numbers([*totals, len(window), filler is not None])
        targets, units, num_batches, _ = of_process.sum(0).tolist()
        if not num_batches:
            return
        if not of_process[:, 3].all():  # resumed after the last batch of a process
            filler = _share(filler, int(of_process[:, 3].argmax()))
        # ESPnet's Trainer averages over these batches, and DDP over the processes
        numbers = torch.tensor([targets, max(units, 1.0)])
        denominators = numbers / (accum_grad * len(of_process))
        for ids, batch in window:
            yield ids, {**batch, "loss_denominators": denominators}
        for _ in range(accum_grad - len(window)):
            yield filler


def _count(
    batch: Dict[str, torch.Tensor], num_positions: Callable[[int], int]
) -> Tuple[int, int]:
    """Count target tokens (transcript and EOS) and the CTC units that can be placed."""
    lengths_B = batch["text_lengths"]
    targets = int(lengths_B.sum()) + len(lengths_B)
    if "text_ctc" not in batch:
        return targets, 0
    positions_B = torch.tensor([*map(num_positions, batch["speech_lengths"].tolist())])
    units_B = batch["text_ctc_lengths"]
    return targets, int(
        (units_B * placed(positions_B, batch["text_ctc"], units_B)).sum()
    )


def _filler(batch: Batch) -> Batch:
    """Return one utterance of a batch, weighted with zero."""
    first = {name: values[:1] for name, values in batch[1].items()}
    return [], {**first, "loss_denominators": torch.full((2,), float("inf"))}


def _share(filler: Batch, source: int) -> Batch:
    shared = [filler]
    torch.distributed.broadcast_object_list(shared, src=source)
    return shared[0]
