"""Floating-point operations of a training step, derived from the model's own modules.

A multiplication and an addition are two. Only matrix products and convolutions are
counted, as in Chowdhery et al., "PaLM" (arXiv 2204.02311), appendix B: norms,
activations and the frontend are left out, attention counts all pairs of positions, and
recomputation under activation checkpointing is not counted.

    forward     each product once
    backward    the gradient of its input, once more; of its weight, if that is trained,
                once more; nothing below the lowest trained parameter
"""

from typing import Iterator, NamedTuple, Optional

import torch

# Part of a GPU's name -> TFLOP/s, dense bfloat16, from the data sheets
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A40": 150.0,
}


class Work(NamedTuple):
    """The content of batches, summed over their utterances.

    Attributes:
        utterances: Number of utterances.
        samples: Samples of audio, or feature frames where the input is features.
        speech: Speech positions.
        positions: Positions of the joined sequence, speech included.
        padded: The same, padding included.
        targets: Tokens to predict.
        speech_pairs: Sum of squared numbers of speech positions.
        pairs: Sum of squared numbers of positions.
    """

    utterances: float
    samples: float
    speech: float
    positions: float
    padded: float
    targets: float
    speech_pairs: float
    pairs: float

    @classmethod
    def of(cls, speech: int, text: int, prompt: int = 0, samples: int = 0) -> "Work":
        """Return the work of one utterance.

        Args:
            speech: Its speech positions.
            text: Its tokens, without EOS.
            prompt: Tokens of the prompt.
            samples: Of its audio.
        """
        total = speech + prompt + text
        return cls(1, samples, speech, total, total, text + 1, speech**2, total**2)


class Flops(NamedTuple):
    """FLOPs of a model's forward and backward pass."""

    forward: float
    backward: float


def training_flops(
    lm: torch.nn.Module,
    speech_embedder: torch.nn.Module,
    ctc: Optional[torch.nn.Module],
    work: Work,
    num_layers: Optional[int] = None,
) -> Flops:
    """Derive the FLOPs of a training step.

    Args:
        lm: The adapted LM; it may be on the meta device.
        speech_embedder: The speech embedder.
        ctc: The CTC head, or None.
        work: The content of the batch.
        num_layers: Number of layers that run. In the CTC warm-up it is smaller, and the
            LM head does not run. None: all.
    """
    parts = [(speech_embedder, _embedder(speech_embedder, work))]
    parts += [(layer, _layer(layer, work)) for layer in lm.model.layers[:num_layers]]
    if num_layers is None:
        parts.append((lm.lm_head, [_product(lm.lm_head, work.targets)]))
    if ctc is not None:
        parts.append((ctc, [_product(ctc.ctc.ctc_lo, work.speech)]))
    gradient, total = False, Flops(0.0, 0.0)
    for module, costs in parts:
        gradient = gradient or any(p.requires_grad for p in module.parameters())
        for cost in costs:
            total = Flops(
                total.forward + cost.forward, total.backward + gradient * cost.backward
            )
    return total


def _product(module: torch.nn.Module, rows: float, input_grad: bool = True) -> Flops:
    """Return the cost of a linear layer on N rows, or a convolution with N outputs."""
    forward = 2 * module.weight.numel() * rows
    return Flops(forward, forward * (input_grad + module.weight.requires_grad))


def _layer(layer: torch.nn.Module, work: Work) -> Iterator[Flops]:
    """Yield the cost of each product in a layer."""
    for name, module in layer.named_modules():
        on_speech = name.partition(".")[0] in getattr(layer, "SPEECH_MODULES", ())
        rows = work.speech if on_speech else work.positions
        pairs = work.speech_pairs if on_speech else work.pairs
        if name.endswith("linear_pos"):
            # relative positions, once for a batch, have no input
            yield _product(module, 2 * rows / work.utterances, False)
        elif isinstance(module, (torch.nn.Linear, torch.nn.Conv1d)):
            yield _product(module, rows)
        elif query := getattr(module, "q_proj", getattr(module, "linear_q", None)):
            # queries by keys, weights by values; relative positions are twice as many
            products = 4 if hasattr(module, "linear_pos") else 2
            forward = 2 * products * query.out_features * pairs
            yield Flops(forward, 2 * forward)


def _embedder(embedder: torch.nn.Module, work: Work) -> Iterator[Flops]:
    """Yield the cost of its products; each convolution halves time and features."""
    convolutions = [m for m in embedder.modules() if isinstance(m, torch.nn.Conv2d)]
    features = getattr(embedder, "input_size", 0)  # speech tokens are looked up
    for number, conv in enumerate(convolutions):
        features = (features - conv.kernel_size[0]) // conv.stride[0] + 1
        outputs = features * 2 ** (len(convolutions) - number - 1)
        # the first convolution's input, the features, takes no gradient
        yield _product(conv, outputs * work.speech, number > 0)
    for module in embedder.modules():
        if isinstance(module, torch.nn.Linear):
            yield _product(module, work.speech)


def peak_flops(given_tflops: Optional[float] = None) -> float:
    """Return the peak FLOP/s of this process's device, 0 if it is not known.

    Args:
        given_tflops: The user's value in TFLOP/s, or None.
    """
    if given_tflops is not None:
        return given_tflops * 1e12
    name = torch.cuda.get_device_name() if torch.cuda.is_initialized() else ""
    return next((1e12 * p for part, p in PEAK_TFLOPS.items() if part in name), 0.0)
