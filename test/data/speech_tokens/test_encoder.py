"""Encoders of every kind: frames of any audio, the same in any company."""

import numpy as np
import pytest
import torch

from espnet_dus.data.speech_tokens.encoder_factory import make_encoder

RATE = 16000


@pytest.fixture(
    params=["logmel", "hubert", "hubert layer", "espnet_ssl", "whisper", "opuslm"]
)
def encoder(request):
    name = request.param
    if name in ("logmel", "opuslm"):
        return request.getfixturevalue(name)
    if name == "whisper":
        directory = request.getfixturevalue("whisper_dir")
        return make_encoder(dict(encoder="ctranslate2_whisper", model=str(directory)))
    spec = {"encoder": "frontend"}
    if name == "espnet_ssl":
        path = str(request.getfixturevalue("ssl_model"))
        conf = {"frontend_conf": {"path_or_url": path}, "layer": 0}
        return make_encoder({**spec, "frontend": name, "frontend_conf": conf})
    conf = {"model": str(request.getfixturevalue("hubert_dir"))}
    if name == "hubert layer":
        conf["layer"] = 1
    return make_encoder({**spec, "frontend": "huggingface", "frontend_conf": conf})


def test_audio_of_any_length_has_its_own_frames_in_any_company(encoder, noises):
    assert encoder.sampling_rate == RATE and encoder.frame_shift == 320
    lengths = [0.01, 0.02, 0.48, 0.5, 1.7, 60.0]
    waveforms = [noises(s, seed=seed)[0] for seed, s in enumerate(lengths)]
    waveforms.append(np.zeros(RATE, dtype=np.float32))
    together = encoder(waveforms)
    # one frame for each 20 ms, the last of which may be incomplete
    assert [len(frames) for frames in together] == [1, 1, 24, 25, 85, 3000, 50]
    assert all(torch.isfinite(frames).all() for frames in together)
    others = encoder(waveforms[::-1])[::-1]
    for waveform, frames, other in zip(waveforms, together, others):
        assert torch.equal(frames, other)
        if len(waveform) < 5 * RATE:
            assert torch.equal(frames, encoder([waveform])[0])
    # other audio, other frames
    assert not torch.equal(together[4][:50], together[6])


def test_batches_of_several_rows_change_nothing_but_rounding(
    logmel, noises, monkeypatch
):
    waveforms = [noises(0.9, seed=seed)[0] for seed in range(5)]
    alone = logmel(waveforms)
    monkeypatch.setattr("espnet_dus.data.speech_tokens.encoder.BATCH_SECONDS", 3)
    shapes = []
    forward = logmel.forward
    monkeypatch.setattr(
        logmel, "forward", lambda x: shapes.append(tuple(x.shape)) or forward(x)
    )
    # as on a GPU: rows of a full batch, the last one filled up with silence
    monkeypatch.setattr(logmel, "device", torch.device("cpu"))
    together = logmel(waveforms)
    assert shapes == [(3, RATE), (3, RATE)]
    for one, other in zip(alone, together):
        torch.testing.assert_close(one, other)


def test_samples_are_rounded_to_16_bits(logmel, noises):
    (waveform,) = noises(0.3)
    rounded = np.rint(waveform * 32768).astype(np.int16)
    assert torch.equal(logmel([waveform])[0], logmel([rounded])[0])
    assert torch.equal(logmel([torch.from_numpy(waveform)])[0], logmel([rounded])[0])


@pytest.mark.parametrize(
    "waveform, message",
    [
        (np.zeros(0, np.float32), r"shape \(0,\)"),
        (np.zeros((2, 100), np.float32), r"shape \(2, 100\)"),
        (np.array([0.0, np.nan], np.float32), "NaN"),
    ],
)
def test_what_is_no_audio_of_one_channel_is_refused(logmel, waveform, message):
    with pytest.raises(ValueError, match=message):
        logmel([waveform])
