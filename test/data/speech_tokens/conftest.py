"""Tiny, randomly initialized encoders of the classes that users take from the hub."""

import argparse
import inspect
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
import yaml

from espnet_dus.data.speech_tokens.encoder_factory import TOKENIZERS, make_encoder


@pytest.fixture(scope="session")
def logmel():
    return make_encoder(TOKENIZERS["logmel"])


@pytest.fixture(scope="session")
def hubert_dir(tmp_path_factory):
    """A HuBERT of two layers, as transformers saves it."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("hubert")
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        vocab_size=8,
    )
    HubertModel(config).eval().save_pretrained(directory)
    Wav2Vec2FeatureExtractor().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def ssl_model(tmp_path_factory):
    """An SSL model of ESPnet with XEUS's parts, and where it is saved."""
    from espnet2.tasks.ssl import SSLTask

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("ssl")
    args = SSLTask.get_default_config()
    shapes = [[4, 10, 5], *[[4, 3, 2]] * 4, *[[4, 2, 2]] * 2]
    args.update(
        token_list=["a", "b"],
        num_classes=2,
        loss=[{"name": "hubert", "conf": {"num_classes": 2, "final_dim": 4}}],
        frontend_conf={
            "shapes": shapes,
            "normalize_audio": True,
            "norm_mode": "layer_norm",
            "conv_mode": "standard",
            "bias": True,
        },
        preencoder_conf={"input_size": 4, "output_size": 16},
        encoder="e_branchformer",
        encoder_conf={
            "output_size": 16,
            "attention_heads": 2,
            "linear_units": 32,
            "cgmlp_linear_units": 32,
            "num_blocks": 2,
            "input_layer": None,
        },
        normalize=None,
        normalize_conf={},
    )
    (directory / "config.yaml").write_text(yaml.safe_dump(args))
    model = SSLTask.build_model(argparse.Namespace(**args))
    path = directory / "xeus_checkpoint_old.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def opuslm(ssl_model):
    """ESPnet's DiscreteAudioIO over tiny models in the place of those of the hub."""
    from espnet2.bin import gan_codec_inference
    from espnet2.gan_codec.espnet_model import ESPnetGANCodecModel
    from espnet2.gan_codec.soundstream.soundstream import SoundStream
    from espnet_model_zoo import downloader
    from sklearn.cluster import KMeans

    torch.manual_seed(0)
    params = inspect.signature(SoundStream).parameters
    generator = {
        **params["generator_params"].default,
        "hidden_dim": 8,
        "encdec_n_filters": 2,
        "encdec_lstm": 0,
        "quantizer_n_q": 3,
        "quantizer_bins": 16,
        "quantizer_kmeans_init": False,
        "quantizer_target_bandwidth": [0.6],
    }
    codec = ESPnetGANCodecModel(SoundStream(16000, generator_params=generator)).eval()
    frames = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    kmeans = KMeans(12, random_state=0).fit(frames)
    joblib.dump(kmeans, ssl_model.with_name("km_opus_lm.mdl"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gan_codec_inference.AudioCoding,
            "from_pretrained",
            lambda tag, device: SimpleNamespace(model=codec),
        )
        patch.setattr(
            downloader.ModelDownloader,
            "download_and_unpack",
            lambda self, tag: {"ssl_train_config": ssl_model.with_name("config.yaml")},
        )
        return make_encoder(
            {
                "encoder": "opuslm",
                "codec_hf_model_tag": "tiny/codec",
                "ssl_hf_model_tag": "espnet/xeus",
                "codec_max_token_per_frame": 2,
            }
        )
