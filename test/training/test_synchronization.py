"""How often a training step makes the CPU wait for the GPU, counted on a CPU.

Reads of a tensor's value count (`item`, `int`, `if tensor`), those of the number of its
nonzero elements (`nonzero`, a boolean index), and of lengths by PyTorch's CTC loss.
"""

import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from espnet_dus.data.speech_tokens.info import TokenizerInfo

READS = {
    torch.ops.aten._local_scalar_dense.default: 1,
    torch.ops.aten.nonzero.default: 1,
    torch.ops.aten.masked_select.default: 1,
    # lengths of inputs and targets, for the launch of the kernel
    torch.ops.aten._ctc_loss.Tensor: 2,
    torch.ops.aten._ctc_loss_backward.Tensor: 2,
}


class ReadsByDispatch(TorchDispatchMode):
    """Counts the reads by the function that made them."""

    def __init__(self):
        super().__init__()
        self.by_function = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        number = READS.get(op, 0)
        if op in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
            number = sum(i is not None and i.dtype == torch.bool for i in args[1])
        if number:
            self.note(number)
        return op(*args, **kwargs or {})

    def note(self, number):
        self.by_function[self.caller()] += number

    @staticmethod
    def caller():
        """Return the function that reads; `backward` for autograd's own."""
        for frame in reversed(traceback.extract_stack()):
            if frame.name == "reads_of_a_step":
                return "backward"
            if "/torch/" not in frame.filename and frame.filename != __file__:
                return f"{Path(frame.filename).stem}.{frame.name}"
        raise RuntimeError("a read outside of a step")


class ListReads(TorchFunctionMode):
    """Counts `tolist` and `numpy`, which a CPU tensor does without an operation."""

    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.tolist, torch.Tensor.numpy):
            self.reads.note(1)
        return function(*args, **kwargs or {})


def reads_of_a_step(model, batch):
    reads = ReadsByDispatch()
    with reads, ListReads(reads):
        model(**batch)[0].backward()
    return dict(reads.by_function)


# The whole step, by function. Before the first layer the GPU has next to nothing to do,
# and nothing is lost:
BEFORE_THE_LAYERS = {
    "features.extract_features": 1,
    "sequence.join": 1,
    "espnet_model._predicted": 1,
}
FEATURES = {
    "nets_utils._make_pad_mask": 1,  # ESPnet's STFT
    "nets_utils._make_pad_mask_traceable": 1,
    "speech_embedder.forward": 2,
}
TOKENS = {
    "token_embedder.forward": 2,  # the longest; whether a token is not in the table
    "mask_along_axis.mask_along_axis": 2,  # ESPnet's masks along time
}
# Twice where the CTC head splits the layers into two passes. Transformers asks whether
# sequences are packed; layers that gather the speech need to know where it is.
EACH_PASS = {"masking_utils.find_packed_sequence_indices": 1}
# Packed: where the real positions are; Transformers asks whether there is a mask.
PACKED = {"packing.pack": 1, "masking_utils._ignore_causal_mask_sdpa": 1}
EACH_PASS_WITH_SPEECH = {"speech_only.find_speech": 2}
# Behind the layers: PyTorch's CTC, forward and backward.
CTC = {"ctc.loss_fn": 2, "backward": 2}


@pytest.mark.parametrize("positions", [(0, 2), (0, 1, 1, 2, 2)], ids=len)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_the_number_does_not_depend_on_the_layers(
    tiny_model, tiny_batch, adaptation_conf, kind_and_scope, positions, checkpointing
):
    conf = adaptation_conf(*kind_and_scope, positions)
    # a pass of the added layers below the CTC head, and one of a base layer above it
    model = tiny_model(adaptation_conf=conf, model_conf={"ctc_layer": "inserted:0"})
    if checkpointing:
        model.lm.gradient_checkpointing_enable({"use_reentrant": False})
    reads = reads_of_a_step(model.train(), tiny_batch(0.9, 0.5, 0.6))
    if kind_and_scope == ("transformer", "speech"):
        # Transformers asks each bidirectional layer's mask whether it is needed
        assert reads.pop("masking_utils._ignore_bidirectional_mask_sdpa") == len(
            positions
        )
    speech = kind_and_scope != ("transformer", "all")
    expected = Counter(BEFORE_THE_LAYERS) + Counter(FEATURES) + Counter(CTC)
    for _ in "12":
        expected += Counter(EACH_PASS)
        expected += Counter(EACH_PASS_WITH_SPEECH if speech else {})
    assert reads == dict(expected)


PAPER = {  # arm -> its adaptation, and whether its layers gather the speech
    "full": ("full", {}, False),
    "lora": ("lora", {"rank": 2}, False),
    "interleaved": ("dus", ("transformer", "all"), False),
    "e_branchformer_interleaved": ("dus", ("e_branchformer", "all"), True),
}


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("arm", PAPER)
def test_the_papers_arms_on_speech_tokens(
    tiny_model, adaptation_conf, tmp_path, arm, packing
):
    adaptation, conf, with_speech = PAPER[arm]
    if adaptation == "dus":
        conf = adaptation_conf(*conf)
    TokenizerInfo("tiny", {"encoder": "none"}, 50.0, 16000, (5, 3)).write(tmp_path)
    model = tiny_model(
        adaptation=adaptation,
        adaptation_conf=conf,
        speech_input="tokens",
        speech_tokenizer=str(tmp_path),
        speech_embedder_conf={},
        frontend_conf={},
        ctc_units=None,
        model_conf={"prompt": "Transcript:", "ctc_weight": 0.0, "packing": packing},
    )
    batch = dict(
        speech=torch.randint(3, (2, 90, 2)),
        speech_lengths=torch.tensor([90, 60]),
        text=torch.tensor([[40, 50, 60], [70, 80, -1]]),
        text_lengths=torch.tensor([3, 2]),
    )
    expected = Counter(BEFORE_THE_LAYERS) + Counter(TOKENS)
    expected += Counter(PACKED if packing else EACH_PASS)
    expected += Counter(EACH_PASS_WITH_SPEECH if with_speech else {})
    assert reads_of_a_step(model.train(), batch) == dict(expected)


def test_espnets_own_loop(train, tmp_path):
    reads = ReadsByDispatch()
    with reads, ListReads(reads):
        options = dict(optim_conf={"lr": 1e-3, "fused": True}, max_epoch=1)
        train(tmp_path / "exp", **options)
    num_batches = 2
    # five values, each with its weight; then grad_norm and clip
    assert reads.by_function["reporter.to_reported_value"] == num_batches * (5 * 2 + 2)
    # CTC in the backward pass; whether the norm of the gradient is finite; once in an
    # epoch, the number of utterances
    assert reads.by_function["trainer.train_one_epoch"] == num_batches * (2 + 1) + 1
