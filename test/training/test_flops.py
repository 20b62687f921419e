"""FLOPs as derived are those that PyTorch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from espnet_dus.training.flops import Work, peak_flops, training_flops

B, S, N = 2, 9, 6  # utterances, speech positions, transcript tokens
ARMS = {
    "frozen": {},
    "full": {},
    "lora": {"rank": 3},
    "transformer-speech": dict(kind="transformer", scope="speech", positions=[0, 2]),
    "transformer-all": dict(kind="transformer", scope="all", positions=[1]),
    "e_branchformer-speech": None,
    "e_branchformer-all": None,
}


def conv_backward(grad_out, x, w, *args, out_shape=None, **kwargs):
    """As PyTorch's formula, but right for grouped convolutions, whose weight it takes
    for that of a full one."""
    input_grad, weight_grad, _ = args[7]
    return (input_grad + weight_grad) * conv_flop_count(x, w, grad_out)


def counted(function):
    """Count forward and backward of a function that gives a scalar."""
    mapping = {torch.ops.aten.convolution_backward: conv_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as forward:
        loss = function()
    with FlopCounterMode(display=False, custom_mapping=mapping) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.fixture(params=ARMS)
def model(request, tiny_model, adaptation_conf):
    """Each arm; no utterance of a batch is padded, so that all positions count."""
    arm, conf = request.param, ARMS[request.param]
    if conf is None:
        conf = adaptation_conf(*arm.split("-"))
    return tiny_model(
        adaptation=arm if "-" not in arm else "dus",
        adaptation_conf=conf,
        base_lm_conf={"dtype": "float32", "attn_implementation": "eager"},
        model_conf={"prompt": "", "ctc_layer": "base:-1"},
    ).train()


def work(model, utterances=B):
    one = Work.of(S, N)
    return Work(*(utterances * number for number in one))


def test_layers_and_heads_are_counted_exactly(model):
    hidden = model.lm.config.hidden_size
    speech = torch.randn(B, S, hidden, requires_grad=True)
    text = torch.randint(2, 99, (B, N))
    lengths = torch.full((B,), S), torch.full((B,), N)

    def step():
        seq = model.join_text(speech, lengths[0], text, lengths[1])
        seq = seq._replace(  # without what pads the length to a multiple of 16
            inputs_BTD=seq.inputs_BTD[:, : S + N],
            speech_mask_BT=seq.speech_mask_BT[:, : S + N],
        )
        ctc_BTD = model.lower(seq)
        hidden_BTD = model.upper(ctc_BTD, seq)
        predicted = model._predicted(seq, text, lengths[1])
        ce, _ = model._cross_entropy(hidden_BTD, *predicted)
        units = torch.ones(B, 2, dtype=torch.long), torch.tensor([2, 2])
        return ce + model.ctc(ctc_BTD[:, :S], lengths[0], *units)[0]

    # the embedder is an empty one here: it has no part in the step
    nothing = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(1))])
    flops = training_flops(model.lm, nothing, model.ctc, work(model))
    forward, backward = counted(step)
    # relative positions: 2 S - 1 of them are derived as 2 S
    relative = any(hasattr(m, "linear_pos") for m in model.lm.modules())
    tolerance = 0.02 if relative else 0
    assert flops.forward == pytest.approx(forward, rel=tolerance)
    assert flops.backward == pytest.approx(backward, rel=tolerance)


def test_the_embedder_is_counted_but_for_the_edges(tiny_model):
    model = tiny_model().train()
    num_frames = 8 * 64
    feats = torch.randn(B, num_frames, model.speech_embedder.input_size)
    lengths = torch.full((B,), num_frames)
    speech, _ = model.speech_embedder(feats, lengths)
    content = Work(*(B * n for n in Work.of(speech.size(1), N)))
    args = model.lm, model.speech_embedder, None, content
    flops = training_flops(*args, num_layers=0)
    forward, backward = counted(lambda: model.speech_embedder(feats, lengths)[0].sum())
    assert flops.forward == pytest.approx(forward, rel=0.05)
    assert flops.backward == pytest.approx(backward, rel=0.05)


def test_the_warm_up_runs_the_lower_layers_alone(tiny_model):
    model = tiny_model(adaptation_conf=ARMS["transformer-all"])  # added: index 2 of 4
    args = model.lm, model.speech_embedder, model.ctc, work(model)
    none, two, three, four = (training_flops(*args, num_layers=n) for n in (0, 2, 3, 4))
    layer = three.forward - two.forward
    assert (
        two.forward - none.forward == 2 * layer
        and four.forward - three.forward == layer
    )
    head = training_flops(*args).forward - four.forward
    assert head == 2 * model.lm.lm_head.weight.numel() * B * (N + 1)
    # weights of the added layer have gradients too
    assert layer < two.backward - none.backward == 2 * (four.backward - three.backward)
    assert three.backward - two.backward > four.backward - three.backward


def test_nothing_flows_back_below_what_is_trained(tiny_model, adaptation_conf):
    conf = adaptation_conf("e_branchformer", "all", positions=[2])
    model = tiny_model(adaptation_conf=conf)
    model.speech_embedder.requires_grad_(False)
    args = model.lm, model.speech_embedder, None, work(model)
    below, added = training_flops(*args, num_layers=3), training_flops(
        *args, num_layers=4
    )
    assert below.backward == 0 and below.forward > 0
    assert added.backward > added.forward - below.forward


def test_the_peak_is_what_the_user_says_or_not_known_on_a_cpu():
    assert peak_flops(2.5) == 2.5e12
    assert peak_flops(None) == 0
