"""ESPnet's frontends as encoders: their layers and their identity."""

import numpy as np
import torch

from espnet_dus.data.speech_tokens.encoder import weights_sha256
from espnet_dus.data.speech_tokens.encoder_factory import make_encoder

RATE = 16000


def test_huggingface_layers_are_its_hidden_states(hubert_dir, noises):
    from transformers import AutoFeatureExtractor, AutoModel

    (waveform,) = noises(1.2)
    padded = np.pad(waveform, (0, 24000 - len(waveform)))
    model = AutoModel.from_pretrained(hubert_dir).eval()
    inputs = AutoFeatureExtractor.from_pretrained(hubert_dir)(
        np.rint(padded * 32768).astype(np.float32) / 32768,
        sampling_rate=RATE,
        return_tensors="pt",
    )
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    for layer in (0, 1, 2):
        conf = {"model": str(hubert_dir), "layer": layer}
        encoder = make_encoder(
            dict(encoder="frontend", frontend="huggingface", frontend_conf=conf)
        )
        torch.testing.assert_close(encoder([waveform])[0], hidden[layer][0, :60])


def test_the_identity_of_an_encoder_is_that_of_its_weights(hubert_dir, logmel):
    assert logmel.sha256 == ""
    conf = {"model": str(hubert_dir)}
    spec = dict(encoder="frontend", frontend="huggingface", frontend_conf=conf)
    encoder = make_encoder(spec)
    assert encoder.sha256 == make_encoder(spec).sha256 == weights_sha256(encoder.module)
    next(encoder.module.parameters()).data.add_(1)
    assert weights_sha256(encoder.module) != encoder.sha256
