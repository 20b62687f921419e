"""The number of utterances of each length that fit into memory, found by trial.

A training step (forward, backward) on noise of a bucket's longest length is repeated
with more and more utterances. On a GPU the allocator reports the memory it took; on a
CPU the tensors kept for the backward pass are counted, with parameters, gradients and
the optimizer's state.
"""

import argparse
import bisect
import logging
import math
from typing import Callable, Dict, List, Optional, Sequence

import torch
import yaml

from espnet_dus.data.lengths import LENGTH_MULTIPLE, sampling_rate, speech_positions
from espnet_dus.data.shards.config import DEFAULTS
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.token_embedder import TokenEmbedder

TEXT_SHARE = 0.25  # of the LLM positions; English speech at 80 ms a position


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Find the largest number that fits: doubling, then bisecting.

    Args:
        fits: Whether a number does; if one does, all smaller ones do.
        most: Largest number tried.

    Returns:
        The number; 0 if not even 1 fits.
    """
    good, number = 0, 1
    while number <= most and fits(number):
        good, number = number, 2 * number
    between = range(good + 1, min(number, most + 1))
    return good + bisect.bisect_left(between, True, key=lambda n: not fits(n))


def default_lengths(args: argparse.Namespace, num_prompt_tokens: int) -> List[int]:
    """Return lengths of buckets up to the longest utterance that a stream lets in.

    Args:
        args: The training's options.
        num_prompt_tokens: Tokens between speech and transcript.
    """
    conf = {**DEFAULTS, **args.streaming_conf}
    samples = round(conf["max_duration"] * sampling_rate(args))
    speech = speech_positions(args, samples)
    longest = speech + math.floor(conf["max_duration"] * conf["max_text_rate"])
    longest += num_prompt_tokens + 1
    longest += -longest % LENGTH_MULTIPLE
    return [*range(64, longest, 32), longest]


def gradient_bytes(model: torch.nn.Module) -> int:
    """Return the memory of the gradients; DDP's buckets are a second copy of them."""
    return sum(p.nbytes for p in model.parameters() if p.requires_grad)


def find_batch_sizes(
    model: ESPnetDUSModel,
    optimizer: torch.optim.Optimizer,
    samples_of: Callable[[int], int],
    lengths: Sequence[int],
    max_bytes: int,
    most: int = 1024,
) -> Dict[int, int]:
    """Find the number of utterances that fit for each length.

    Args:
        model: In training, on the device to be trained on.
        optimizer: Of its trained parameters; its state takes memory too.
        samples_of: Returns the samples that become a number of speech positions.
        lengths: LLM positions (speech, prompt, transcript, EOS) of the longest
            utterances of each bucket.
        max_bytes: Memory to use.
        most: Largest batch tried.

    Returns:
        Utterances by length, in ascending order of the lengths.

    Raises:
        ValueError: A length is not a multiple of what the model pads to, or too short;
            or not even one utterance fits.
    """
    for length in lengths:
        if length % LENGTH_MULTIPLE or length < 2 * LENGTH_MULTIPLE:
            raise ValueError(
                f"lengths: expected multiples of {LENGTH_MULTIPLE} from "
                f"{2 * LENGTH_MULTIPLE} on, got {length}"
            )
    model.train()
    model.set_epoch(model.ctc_warmup_epochs + 1)  # the warm-up takes less
    _fill_optimizer_state(optimizer)
    sizes: Dict[int, int] = {}
    for n, length in enumerate(sorted(lengths), 1):

        def fits(batch_size: int) -> bool:
            batch = make_batch(model, batch_size, length, samples_of)
            used = step_bytes(model, optimizer, batch)
            logging.info(
                f"{length} positions x {batch_size}: "
                + ("out of memory" if used is None else f"{used / 1e9:.2f} GB")
            )
            return used is not None and used <= max_bytes

        most = largest(fits, most)  # longer ones are never more
        if most == 0:
            raise ValueError(
                f"not even one utterance of {length} LLM positions fits into "
                f"{max_bytes / 1e9:.2f} GB: leave such utterances out, or take a "
                "smaller model"
            )
        sizes[length] = most
        logging.info(f"bucket {n} of {len(lengths)}: {length} positions, {most}")
    return sizes


def make_batch(
    model: ESPnetDUSModel,
    batch_size: int,
    length: int,
    samples_of: Callable[[int], int],
) -> Dict[str, torch.Tensor]:
    """Make a batch of noise, or of speech tokens, and transcripts, all of one length.

    Args:
        model: Its prompt and vocabularies are used.
        batch_size: Utterances.
        length: LLM positions of each.
        samples_of: Returns the samples that become a number of speech positions.
    """
    device = next(model.parameters()).device
    num_tokens = max(round(TEXT_SHARE * length), 1)
    positions = length - num_tokens - len(model.prompt_ids) - 1
    if positions < 1:
        raise ValueError(f"{length} LLM positions have no room for speech")
    if isinstance(model.speech_embedder, TokenEmbedder):
        streams = len(model.speech_embedder.vocab_sizes)
        speech = torch.zeros(batch_size, positions, streams, dtype=torch.long)
    else:
        speech = 0.1 * torch.randn(batch_size, samples_of(positions))

    def full(value: int) -> torch.Tensor:
        return torch.full((batch_size,), value, device=device)

    def ids(count: int, high: int) -> torch.Tensor:
        return torch.arange(batch_size * count, device=device).view(-1, count) % high

    batch = dict(
        speech=speech.to(device),
        speech_lengths=full(speech.size(1)),
        text=ids(num_tokens, model.lm.config.vocab_size),
        text_lengths=full(num_tokens),
    )
    if model.ctc is not None:
        # CTC needs a position for each unit and one between equal ones
        num_units = min(num_tokens, positions)
        units = 2 + ids(num_units, max(len(model.ctc_units) - 2, 1))
        batch.update(text_ctc=units, text_ctc_lengths=full(num_units))
    return batch


def _fill_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer create its state, by a step of size zero."""
    settings = [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group.update(lr=0.0, weight_decay=0.0)
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for group, before in zip(optimizer.param_groups, settings):
        group.update(before)


def step_bytes(
    model: ESPnetDUSModel,
    optimizer: torch.optim.Optimizer,
    batch: Dict[str, torch.Tensor],
) -> Optional[int]:
    """Do a training step without an update; return the memory it takes.

    Returns:
        Bytes, or None if the GPU's memory is not enough.
    """
    if batch["speech"].is_cuda:
        return _step_bytes_cuda(model, batch)
    saved: Dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**batch)[0]
    model.zero_grad(set_to_none=True)
    del loss
    for parameter in model.parameters():  # some have been noted as saved
        note(parameter)
    state = [value for values in optimizer.state.values() for value in values.values()]
    state_bytes = sum(v.nbytes for v in state if isinstance(v, torch.Tensor))
    return sum(saved.values()) + gradient_bytes(model) + state_bytes


def _step_bytes_cuda(
    model: ESPnetDUSModel, batch: Dict[str, torch.Tensor]
) -> Optional[int]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        model(**batch)[0].backward()
        return torch.cuda.max_memory_reserved()
    except torch.OutOfMemoryError:
        return None
    finally:
        model.zero_grad(set_to_none=True)


def report(sizes: Dict[int, int], header: Sequence[str]) -> str:
    """Return a fragment of a training YAML.

    Args:
        sizes: Utterances by length.
        header: Lines that say how they were found.
    """
    lines = [*header, "Utterances in a batch by their LLM positions:"]
    content = {"streaming_conf": {"batch_sizes": sizes}}
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(content, indent=4)
