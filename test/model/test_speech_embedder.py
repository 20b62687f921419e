"""The speech embedder."""

import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError

from espnet_dus.data.lengths import SUBSAMPLING
from espnet_dus.model.speech_embedder import SpeechEmbedder

NUM_MELS = 20


def embedder(input_layer="conv2d8", rms=0.5, **options):
    torch.manual_seed(0)
    return SpeechEmbedder(NUM_MELS, 64, rms, input_layer, **options).eval()


def features(*lengths):
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn(len(lengths), max(lengths), NUM_MELS, generator=generator)
    return feats, torch.tensor(lengths)


@pytest.mark.parametrize("input_layer, factor", SUBSAMPLING.items())
@torch.no_grad()
def test_frames_are_subsampled_by_the_factor(input_layer, factor):
    factor = factor.factor
    x_BSD, lengths_B = embedder(input_layer)(*features(400, 203))
    assert x_BSD.shape == (2, int(lengths_B.max()), 64)
    for got, frames in zip(lengths_B.tolist(), (400, 203)):
        assert frames / factor - 2 < got <= frames / factor


@pytest.mark.parametrize("input_layer", SUBSAMPLING)
@torch.no_grad()
def test_an_utterance_has_the_same_embeddings_alone_and_in_a_batch(input_layer):
    model = embedder(input_layer, channels=8)
    lengths = [300] + list(range(15, 140))
    feats, lengths_B = features(*lengths)
    for b, length in enumerate(lengths):
        feats[b, length:] = 7.0  # anything may be in the padding
    together, together_lengths_B = model(feats, lengths_B)
    for b, length in enumerate(lengths):
        alone, alone_lengths = model(feats[b : b + 1, :length], lengths_B[b : b + 1])
        assert alone_lengths[0] == together_lengths_B[b] == alone.size(1), length
        there = together[b, : alone.size(1)]
        torch.testing.assert_close(there, alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("input_layer", SUBSAMPLING)
def test_the_fewest_frames_give_one_position_and_one_less_is_an_error(input_layer):
    model = embedder(input_layer)
    fewest = SUBSAMPLING[input_layer].fewest
    assert model(*features(fewest))[1].tolist() == [1]
    with pytest.raises(
        TooShortUttError, match=f"{fewest - 1} frames, {fewest} are the"
    ):
        model(*features(200, fewest - 1))


@torch.no_grad()
def test_a_linear_input_layer_projects_frames_one_after_the_other():
    model = embedder("linear2")
    feats, lengths_B = features(7)
    x_BSD, lengths_B = model(feats, lengths_B)
    assert lengths_B.tolist() == [3]  # the seventh frame has no second one
    pairs_SM = torch.cat([feats[0, 0:6:2], feats[0, 1:6:2]], dim=-1)
    torch.testing.assert_close(x_BSD[0], model.project(model.norm(pairs_SM)))


@pytest.mark.parametrize("rms", [0.02, 1.0])
@torch.no_grad()
def test_embeddings_start_at_the_scale_of_the_token_embeddings(rms):
    x_BSD, _ = embedder(rms=rms)(*features(400, 400))
    assert x_BSD.pow(2).mean().sqrt().item() == pytest.approx(rms, rel=0.2)


def test_dropout_is_on_in_training_only():
    model, (feats, lengths) = embedder(dropout_rate=0.5), features(100)
    assert torch.equal(model(feats, lengths)[0], model(feats, lengths)[0])
    share_of_zeros = (model.train()(feats, lengths)[0] == 0).float().mean()
    assert 0.3 < share_of_zeros < 0.7


def test_an_unknown_input_layer_is_an_error_that_names_the_known():
    with pytest.raises(
        ValueError, match="'conv2d6' is not one of conv2d, conv2d8, linear"
    ):
        embedder("conv2d6")
