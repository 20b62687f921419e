"""Scope `speech`: what the layer is shown, and that all else passes by."""

import torch

from espnet_dus.model.layers.speech_only import SpeechOnlyLayer, find_speech


class Recorder(torch.nn.Module):
    """Keeps what it was called with; not a number on a frame of padding."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x_BSD, mask_BS):
        self.calls.append((x_BSD.detach().clone(), mask_BS.clone()))
        return torch.where(mask_BS[..., None], self.weight * 2 * x_BSD, float("nan"))


X_BTD = torch.arange(1.0, 37.0).reshape(3, 6, 2)
MASK_BT = torch.tensor(
    [[0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool
)


def test_the_layer_sees_the_speech_positions_without_gaps_and_in_order():
    recorder = Recorder()
    SpeechOnlyLayer(recorder)(X_BTD, find_speech(MASK_BT, True))
    ((x_BSD, mask_BS),) = recorder.calls
    assert mask_BS.tolist() == [
        [True, True, True, False],
        [True, True, True, True],
        [True, False, False, False],
    ]
    assert torch.equal(x_BSD[0, :3], X_BTD[0, [1, 2, 4]])
    assert torch.equal(x_BSD[1], X_BTD[1, :4])
    assert torch.equal(x_BSD[2, :1], X_BTD[2, 5:])
    assert not x_BSD[~mask_BS].any()  # none of the text that follows the speech


def test_speech_positions_are_transformed_and_all_others_leave_as_they_came():
    y_BTD = SpeechOnlyLayer(Recorder())(X_BTD, find_speech(MASK_BT, True))
    assert torch.equal(y_BTD[MASK_BT], 2 * X_BTD[MASK_BT])
    assert torch.equal(y_BTD[~MASK_BT], X_BTD[~MASK_BT])


def test_an_input_without_speech_does_not_touch_the_layer():
    recorder = Recorder()
    layer = SpeechOnlyLayer(recorder).eval()
    assert layer(X_BTD) is X_BTD
    assert layer(X_BTD, find_speech(torch.zeros_like(MASK_BT), False)) is X_BTD
    assert not recorder.calls


def test_an_utterance_without_speech_and_its_gradient_do_not_change_next_to_others():
    mask_BT = MASK_BT.clone()
    mask_BT[2] = False
    x_BTD = X_BTD.clone().requires_grad_()
    recorder = Recorder()
    y_BTD = SpeechOnlyLayer(recorder)(x_BTD, find_speech(mask_BT, True))
    assert torch.equal(y_BTD[2], X_BTD[2])
    assert recorder.calls[0][1].any(1).all()  # attention over no frame is not a number
    y_BTD.sum().backward()
    assert torch.equal(
        x_BTD.grad, torch.where(mask_BT[..., None], 2.0, 1.0).expand(3, 6, 2)
    )
    assert recorder.weight.grad == 2 * X_BTD[mask_BT].sum()


def test_in_training_an_input_without_speech_gives_every_parameter_a_zero_gradient():
    x_BTD = X_BTD.clone().requires_grad_()
    recorder = Recorder()
    speech = find_speech(torch.zeros_like(MASK_BT), True)
    y_BTD = SpeechOnlyLayer(recorder)(x_BTD, speech)
    assert torch.equal(y_BTD, X_BTD)
    y_BTD.sum().backward()
    assert recorder.weight.grad == 0  # not None, which DDP would wait for
