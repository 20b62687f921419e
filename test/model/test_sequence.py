"""Joining speech and text into one sequence without a gap."""

import pytest
import torch

from espnet_dus.model.sequence import join

SPEECH_LENGTHS, TEXT_LENGTHS = [4, 2, 3], [1, 3, 0]
NAN = float("nan")


def parts():
    """Speech is 10 b + place, text 100 + 10 b + place, padding not a number."""
    speech, text = torch.full((3, 4, 1), NAN), torch.full((3, 3, 1), NAN)
    for b, (num_speech, num_text) in enumerate(zip(SPEECH_LENGTHS, TEXT_LENGTHS)):
        speech[b, :num_speech, 0] = 10 * b + torch.arange(num_speech)
        text[b, :num_text, 0] = 100 + 10 * b + torch.arange(num_text)
    return speech, torch.tensor(SPEECH_LENGTHS), text, torch.tensor(TEXT_LENGTHS)


def test_training_sequences_have_their_padding_at_the_right():
    seq = join(*parts(), "right")
    assert seq.inputs_BTD[..., 0].tolist() == [
        [0, 1, 2, 3, 100],
        [10, 11, 110, 111, 112],
        [20, 21, 22, 0, 0],
    ]
    assert seq.attention_mask_BT.tolist() == [[1] * 5, [1] * 5, [1, 1, 1, 0, 0]]
    assert seq.speech_mask_BT.int().tolist() == [
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
    ]
    assert seq.lengths_B.tolist() == [5, 5, 3]


def test_sequences_to_generate_from_have_their_padding_at_the_left():
    seq = join(*parts(), "left")
    assert seq.inputs_BTD[..., 0].tolist() == [
        [0, 1, 2, 3, 100],
        [10, 11, 110, 111, 112],
        [0, 0, 20, 21, 22],
    ]
    assert seq.attention_mask_BT.tolist() == [[1] * 5, [1] * 5, [0, 0, 1, 1, 1]]
    assert seq.speech_mask_BT.int().tolist() == [
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_to_a_multiple_adds_padding_only(side):
    exact, padded = join(*parts(), side), join(*parts(), side, multiple=8)
    assert padded.inputs_BTD.shape == (3, 8, 1)
    assert padded.lengths_B.tolist() == exact.lengths_B.tolist()
    kept = slice(3, 8) if side == "left" else slice(0, 5)
    for ours, theirs in zip(padded[:3], exact[:3]):
        assert torch.equal(ours[:, kept], theirs)
        assert ours.sum() == theirs.sum()


def test_a_length_that_is_a_multiple_stays():
    assert join(*parts(), "right", multiple=5).inputs_BTD.size(1) == 5


def test_there_may_be_no_text():
    speech, lengths, _, _ = parts()
    none = torch.zeros(3, 0, 1), torch.zeros(3, dtype=torch.long)
    seq = join(speech, lengths, *none, "right")
    assert seq.inputs_BTD[..., 0].tolist() == [
        [0, 1, 2, 3],
        [10, 11, 0, 0],
        [20, 21, 22, 0],
    ]


def test_the_gradient_reaches_real_positions_and_no_padding():
    speech, speech_lengths, text, text_lengths = parts()
    speech, text = speech.nan_to_num(), text.nan_to_num()
    for part in (speech, text):
        part.requires_grad_()
    join(speech, speech_lengths, text, text_lengths, "left").inputs_BTD.sum().backward()
    for part, lengths in ((speech, SPEECH_LENGTHS), (text, TEXT_LENGTHS)):
        for b, length in enumerate(lengths):
            expected = (torch.arange(part.size(1)) < length).float()
            assert torch.equal(part.grad[b, :, 0], expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_may_come_before_the_speech(side):
    before = torch.full((3, 2, 1), NAN)
    before[0, :2, 0], before[2, :1, 0] = torch.tensor([7.0, 8.0]), 9.0
    lengths_B = torch.tensor([2, 0, 1])
    seq = join(*parts(), side, before=(before, lengths_B))
    rows = [
        [7, 8, 0, 1, 2, 3, 100],
        [10, 11, 110, 111, 112],
        [9, 20, 21, 22],
    ]
    masks = [[0, 0, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 1, 1, 1]]

    def padded(row):
        zeros = [0] * (7 - len(row))
        return zeros + row if side == "left" else row + zeros

    assert seq.inputs_BTD[..., 0].tolist() == [padded(row) for row in rows]
    assert seq.speech_mask_BT.int().tolist() == [padded(mask) for mask in masks]
    ones = [padded([1] * len(row)) for row in rows]
    assert seq.attention_mask_BT.tolist() == ones
    assert seq.lengths_B.tolist() == [7, 5, 4]
    if side == "right":
        speech_BSD = seq.of_speech(seq.inputs_BTD, 4)[..., 0].tolist()
        assert speech_BSD[0] == [0, 1, 2, 3]
        assert speech_BSD[1][:2] == [10, 11] and speech_BSD[2][:3] == [20, 21, 22]
