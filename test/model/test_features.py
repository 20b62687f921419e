"""Frontends: frozen where they are pretrained, and known again."""

from importlib.util import find_spec

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from espnet_dus.data.lengths import (
    min_length,
    position_times,
    samples_of_positions,
    speech_positions,
)
from espnet_dus.model.features import FRONTENDS


def ssl_model(directory, seed=0):
    """A tiny random wav2vec 2.0, with its usual convolutions: 50 frames a second."""
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Wav2Vec2Model(config).save_pretrained(directory)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(directory)
    return {"model": str(directory)}


@pytest.fixture
def options(tmp_path):
    """Options of a model behind a tiny SSL model."""
    return dict(
        frontend="huggingface",
        frontend_conf=ssl_model(tmp_path / "ssl"),
        speech_embedder_conf=dict(input_layer="linear2", dropout_rate=0.0),
    )


def test_all_of_espnets_frontends_and_ours_are_choices():
    assert list(FRONTENDS) == [
        "default",
        "s3prl",
        "huggingface",
        "espnet_ssl",
        "whisper",
        "ctranslate2_whisper",  # ours
        "fused",
    ]


def test_a_pretrained_frontend_is_frozen_and_not_saved(tiny_model, tiny_batch, options):
    model = tiny_model(**options).train()
    assert not model.frontend.encoder.training
    assert not any(p.requires_grad for p in model.frontend.parameters())
    saved = [name for name in model.state_dict() if name.startswith("frontend.")]
    assert saved == ["frontend.pretrained_identity"]
    batch = tiny_batch(0.9, 0.5, **options)
    model(**batch)[0].backward()
    assert model.speech_embedder.project.weight.grad.any()
    assert all(p.grad is None for p in model.frontend.parameters())


def test_it_can_be_trained_and_is_then_saved(tiny_model, options):
    model = tiny_model(**options, freeze_frontend=False)
    names = {f"frontend.{n}" for n, _ in model.frontend.named_parameters()}
    assert names and names <= set(model.state_dict())
    assert all(p.requires_grad for p in model.frontend.parameters())


def test_a_checkpoint_of_another_frontend_is_refused_by_name(
    tiny_model, options, tmp_path
):
    state = tiny_model(**options).state_dict()
    tiny_model(**options).load_state_dict(state)
    options["frontend_conf"] = ssl_model(tmp_path / "other", seed=1)
    with pytest.raises(RuntimeError, match="frontend huggingface .*ssl.* is .*other"):
        tiny_model(**options).load_state_dict(state)


@pytest.mark.parametrize("input_layer", ["linear", "linear2", "linear4", "conv2d"])
@torch.no_grad()
def test_positions_are_those_that_are_derived(
    tiny_model, tiny_options, options, input_layer
):
    options["speech_embedder_conf"]["input_layer"] = input_layer
    model, args = tiny_model(**options).eval(), tiny_options(**options)
    shortest = min_length(args)
    for num_samples in (shortest, shortest + 319, 8000, 9999):
        speech = torch.randn(1, num_samples, generator=torch.Generator().manual_seed(0))
        lengths = model.embed_speech(speech, torch.tensor([num_samples]))[1]
        assert lengths.tolist() == [speech_positions(args, num_samples)]
    assert speech_positions(args, shortest) == 1
    assert speech_positions(args, shortest - 1) == 0
    assert speech_positions(args, samples_of_positions(args, 7)) == 7
    assert speech_positions(args, samples_of_positions(args, 7) - 1) == 6


def test_the_times_of_positions_are_those_of_the_frames(tiny_options, options):
    first, step = position_times(tiny_options(**options))
    # two windows of 25 ms, 20 ms apart
    assert (first, step) == (pytest.approx(0.0225), pytest.approx(0.04))


@torch.no_grad()
def test_fused_frontends_have_the_frames_that_all_of_them_have(
    tiny_model, tiny_options
):
    part = dict(frontend_type="default", n_mels=8, n_fft=400, center=False)
    options = dict(
        frontend="fused",
        frontend_conf=dict(
            frontends=[dict(part, hop_length=160), dict(part, hop_length=320)],
            proj_dim=8,
            fs=16000,
        ),
    )
    model, args = tiny_model(**options).eval(), tiny_options(**options)
    for num_samples in (min_length(args), 8000, 9999):
        speech = torch.zeros(1, num_samples)
        feats = model.frontend(speech, torch.tensor([num_samples]))[0]
        lengths = model.embed_speech(speech, torch.tensor([num_samples]))[1]
        assert lengths.tolist() == [speech_positions(args, num_samples)], feats.shape
    assert speech_positions(args, min_length(args)) == 1


@pytest.mark.parametrize(
    "num_samples, frames", [(160, 1), (320, 1), (480, 2), (799, 2), (800, 3)]
)
def test_whisper_takes_every_second_of_its_frames(tiny_options, num_samples, frames):
    conf = dict(input_layer="linear")
    args = tiny_options(frontend="whisper", frontend_conf={}, speech_embedder_conf=conf)
    assert speech_positions(args, num_samples) == frames


@pytest.mark.parametrize("frontend", ["whisper", "s3prl"])
def test_a_package_that_is_missing_is_an_error_that_names_it(tiny_model, frontend):
    if find_spec(frontend):
        pytest.skip("it is installed")
    with pytest.raises(ValueError, match=f"frontend: {frontend} needs .*{frontend}"):
        tiny_model(frontend=frontend, frontend_conf={})
