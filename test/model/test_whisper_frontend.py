"""Whisper in CTranslate2's format as a frontend."""

import pytest
import torch

from espnet_dus.data.lengths import position_times, speech_positions
from espnet_dus.model.features import FrontendChoices, freeze_pretrained
from espnet_dus.model.whisper_frontend import CTranslate2WhisperFrontend


@pytest.fixture(scope="module")
def frontend(whisper_dir):
    make = FrontendChoices().get_class("ctranslate2_whisper")
    return make(str(whisper_dir))


def test_an_utterance_has_the_same_features_alone_and_in_a_padded_batch(frontend):
    samples_BN = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    feats_BFM, lengths_B = frontend(samples_BN, torch.tensor([16000, 6500]))
    assert lengths_B.tolist() == [50, 21]  # the last frame may be incomplete
    assert feats_BFM.shape == (2, 50, frontend.output_size())
    alone_BFM, _ = frontend(samples_BN[1:, :6500], torch.tensor([6500]))
    assert torch.equal(feats_BFM[1:, :21], alone_BFM)
    assert not feats_BFM[1, 21:].any()


def test_its_frames_are_those_that_lengths_and_times_are_derived_from(
    frontend, tiny_options
):
    conf = dict(input_layer="linear")
    name = "ctranslate2_whisper"
    args = tiny_options(frontend=name, frontend_conf={}, speech_embedder_conf=conf)
    for num_samples in (320, 321, 16000):
        _, lengths_B = frontend(
            torch.zeros(1, num_samples), torch.tensor([num_samples])
        )
        assert lengths_B.tolist() == [speech_positions(args, num_samples)]
    # as in Whisper: centred, 20 ms apart
    assert position_times(args) == pytest.approx((0, 0.02), abs=1e-4)


def test_its_features_can_be_trained_on(frontend):
    feats_BFM, _ = frontend(torch.zeros(1, 3200), torch.tensor([3200]))
    layer = torch.nn.Linear(frontend.output_size(), 1)
    layer(feats_BFM).sum().backward()
    assert torch.isfinite(layer.weight.grad).all()


def test_its_weights_are_identified_but_not_saved(frontend):
    assert frontend.state_dict() == {}
    assert freeze_pretrained(frontend) == frontend.whisper.sha256 != ""


def test_another_sampling_rate_is_refused(whisper_dir):
    with pytest.raises(ValueError, match="fs=8k: expected 16000"):
        CTranslate2WhisperFrontend(str(whisper_dir), fs="8k")
