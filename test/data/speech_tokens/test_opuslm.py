"""OpusLM's encoder gives the tokens of ESPnet's models."""

import numpy as np
import torch

RATE = 16000


def test_opuslm_streams_are_those_of_the_ssl_model_and_the_codec(opuslm, noises):
    assert opuslm.vocab_sizes == (12, 16, 16)
    (waveform,) = noises(0.98)
    (tokens,) = opuslm([waveform])
    assert tokens.shape == (49, 3)
    samples = torch.from_numpy(np.rint(np.pad(waveform, (0, 320)) * 32768) / 32768)
    samples = samples.float()[None]
    io = opuslm.io
    with torch.no_grad():
        codes = io.codec_model.encode(samples[:, None])[:2, 0, :49]
        feats = io.ssl_model.inference_encode(samples, torch.tensor([RATE]))[0]
    assert torch.equal(tokens[:, 1:], codes.T)
    assert torch.equal(tokens[:, :1], io.km_model(feats)[0, :49])
    assert (tokens >= 0).all() and (tokens < torch.tensor([12, 16, 16])).all()
