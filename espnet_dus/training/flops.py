"""Floating-point operations of a training step, derived from the model's own modules.

A multiplication and an addition are two. Only matrix products and convolutions are
counted, as in Chowdhery et al., "PaLM" (arXiv 2204.02311), appendix B: norms,
activations and the frontend are left out, attention counts all pairs of positions, and
recomputation under activation checkpointing is not counted.

    forward     each product once
    backward    the gradient of its input, once more; of its weight, if that is trained,
                once more; nothing below the lowest trained parameter
"""

from typing import Dict, Iterator, NamedTuple, Tuple

import torch

from espnet_dus.model.layers.hybrid import HybridEBranchformerLayer
from espnet_dus.model.layers.speech_only import SpeechOnlyLayer

PEAK_TFLOPS = (
    {  # dense bfloat16, from the data sheets; part of the GPU's name -> TFLOP/s
        "H200": 989.0,
        "H100 PCIe": 756.0,
        "H100": 989.0,
        "A100": 312.0,
        "L40S": 362.0,
        "A40": 150.0,
    }
)


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
    """FLOPs of a part of the model."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def training_flops(
    lm: torch.nn.Module,
    speech_embedder: torch.nn.Module,
    ctc: torch.nn.Module,
    work: Work,
    num_layers: int = None,
) -> Dict[str, Flops]:
    """Derive the FLOPs of a training step.

    Args:
        lm: The adapted LM; it may be on the meta device.
        speech_embedder: The speech embedder.
        ctc: The CTC head, or None.
        work: The content of the batch.
        num_layers: Number of layers that run. In the CTC warm-up it is smaller, and the
            LM head does not run. None: all.

    Returns:
        FLOPs of `speech_embedder`, `frozen` and `trained` parts of the layers,
        `lm_head` and `ctc`.
    """
    parts = {"speech_embedder": _embedder(speech_embedder, work)}
    gradient = _is_trained(speech_embedder)
    sums = {"frozen": [0.0, 0.0], "trained": [0.0, 0.0]}
    for layer in list(lm.model.layers)[:num_layers]:
        gradient = gradient or _is_trained(layer)
        for module, (forward, backward) in _layer(layer, work):
            part = sums["trained" if module.weight.requires_grad else "frozen"]
            part[0] += forward
            part[1] += backward * gradient
    parts.update({name: Flops(*numbers) for name, numbers in sums.items()})
    if num_layers is None:
        head = _product(lm.lm_head, work.targets)
        parts["lm_head"] = Flops(head[0], head[1] * gradient)
    if ctc is not None:
        parts["ctc"] = Flops(*_product(ctc.ctc.ctc_lo, work.speech))
    return parts


Cost = Tuple[float, float]  # forward, backward


def _product(module: torch.nn.Module, rows: float, input_grad: bool = True) -> Cost:
    """Return the cost of a linear layer on N rows, or a convolution with N outputs."""
    forward = 2 * module.weight.numel() * rows
    return forward, forward * (input_grad + module.weight.requires_grad)


def _layer(layer: torch.nn.Module, work: Work) -> Iterator[Tuple]:
    """Return (module, cost) of a layer, attention with its query projection."""
    speech_only = isinstance(layer, SpeechOnlyLayer)
    rows = work.speech if speech_only else work.positions
    pairs = work.speech_pairs if speech_only else work.pairs
    hybrid = isinstance(layer, HybridEBranchformerLayer)
    for name, module in layer.named_modules():
        kind = name.rpartition(".")[2]
        if hybrid:
            on_speech = name.partition(".")[0] in layer.SPEECH_MODULES
            rows = work.speech if on_speech else work.positions
        if kind == "linear_pos":  # relative positions, once for a batch, have no input
            yield module, _product(module, 2 * rows / work.utterances, False)
        elif isinstance(module, (torch.nn.Linear, torch.nn.Conv1d)):
            yield module, _product(module, rows)
        elif query := getattr(module, "q_proj", getattr(module, "linear_q", None)):
            # queries by keys, weights by values; relative positions are twice as many
            products = 4 if hasattr(module, "linear_pos") else 2
            forward = 2 * products * query.out_features * pairs
            yield query, (forward, 2 * forward)


def _embedder(embedder: torch.nn.Module, work: Work) -> Flops:
    """Count the embedder; each convolution halves time and features."""
    forward = backward = 0.0
    convolutions = [m for m in embedder.modules() if isinstance(m, torch.nn.Conv2d)]
    features = getattr(embedder, "input_size", 0)  # speech tokens are looked up
    for number, conv in enumerate(convolutions):
        features = (features - conv.kernel_size[0]) // conv.stride[0] + 1
        outputs = features * 2 ** (len(convolutions) - number - 1)
        # the first convolution's input, the features, takes no gradient
        cost = _product(conv, outputs * work.speech, number > 0)
        forward, backward = forward + cost[0], backward + cost[1]
    for module in embedder.modules():
        if isinstance(module, torch.nn.Linear):
            cost = _product(module, work.speech)
            forward, backward = forward + cost[0], backward + cost[1]
    return Flops(forward, backward * _is_trained(embedder))


def _is_trained(module: torch.nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def peak_flops(given_tflops: float = None) -> float:
    """Return the peak FLOP/s of this process's device, 0 if it is not known.

    Args:
        given_tflops: The user's value in TFLOP/s, or None.
    """
    if given_tflops is not None:
        return given_tflops * 1e12
    name = torch.cuda.get_device_name() if torch.cuda.is_initialized() else ""
    found = [peak for part, peak in PEAK_TFLOPS.items() if part in name]
    return found[0] * 1e12 if found else 0.0
