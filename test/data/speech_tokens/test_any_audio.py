"""Stage 3 with tiny encoders of every kind: any audio, and encoders that are gone."""

import shutil

import kaldiio
import numpy as np
import pytest
import soundfile
import soxr

from espnet_dus.data.dataset import token_frames
from espnet_dus.data.format import format_data
from espnet_dus.data.speech_tokens import kmeans, tokenizer
from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.data.speech_tokens.kmeans import make_tokenizer
from espnet_dus.data.speech_tokens.tokenizer import load_tokenizer

DURATIONS = {"short": 0.01, "plain": 1.3, "cd": 0.7, "stereo": 0.9, "long": 60.0}


@pytest.fixture
def data_dir(make_data_dir):
    """Mono, 44.1 kHz, stereo, 10 ms, 60 s, silence."""
    data_dir = make_data_dir({**DURATIONS, "silent": 1.0})
    for key in ("cd", "stereo"):
        path = data_dir / f"{key}.wav"
        samples, rate = soundfile.read(path)
        if key == "cd":
            samples, rate = soxr.resample(samples, 16000, 44100), 44100
        else:
            samples = np.stack([samples, samples], 1)
        soundfile.write(path, samples, rate)
    soundfile.write(data_dir / "silent.wav", np.zeros(16000), 16000)
    return data_dir


@pytest.fixture(params=["hubert", "whisper", "opuslm"])
def spec(request, tmp_path, monkeypatch):
    """What `--tokenizer` names; OpusLM's models are tiny ones."""
    name = request.param
    if name == "opuslm":
        opuslm = request.getfixturevalue("opuslm")
        for module in (kmeans, tokenizer):
            monkeypatch.setattr(module, "make_encoder", lambda *_: opuslm)
        return name
    text = "encoder: ctranslate2_whisper\nmodel: {}\n"
    if name == "hubert":
        text = (
            "encoder: frontend\nfrontend: huggingface\nfrontend_conf: {{model: {}}}\n"
        )
    directory = tmp_path / "encoder"
    shutil.copytree(request.getfixturevalue(f"{name}_dir"), directory)
    path = tmp_path / f"{name}.yaml"
    path.write_text(text.format(directory))
    return str(path)


def test_any_audio_has_the_tokens_that_inference_computes(spec, data_dir, tmp_path):
    clusters = None if spec == "opuslm" else 6
    made = tmp_path / "tokenizer"
    make_tokenizer(data_dir, made, spec, clusters, channel="mean")
    out = tmp_path / "dump"
    format_data(data_dir, out, "tokens", speech_tokenizer=made, channel="mean")
    info, vectors = TokenizerInfo.read(made), kaldiio.load_scp(str(out / "feats.scp"))
    found = {key: token_frames(vectors[key], info) for key in vectors}
    frames = {key: -(-round(s * 16000) // 320) for key, s in DURATIONS.items()}
    assert {key: len(tokens) for key, tokens in found.items()} == {
        **frames,
        "silent": 50,
    }
    tokenize = load_tokenizer(made)
    for key in ("short", "plain", "silent", "stereo"):
        samples, _ = soundfile.read(data_dir / f"{key}.wav", always_2d=True)
        expected = tokenize([samples[:, 0].astype(np.float32)])[0]
        np.testing.assert_array_equal(found[key], expected)


@pytest.mark.parametrize("spec", ["hubert", "whisper"], indirect=True)
def test_an_encoder_that_is_gone_leaves_nothing_half_written(spec, data_dir, tmp_path):
    made, out = tmp_path / "tokenizer", tmp_path / "dump"
    make_tokenizer(data_dir, made, spec, 6, channel="mean")
    shutil.rmtree(tmp_path / "encoder")
    tokenizer.tokenizer_of_process.cache_clear()
    with pytest.raises(RuntimeError, match="encoder .* cannot be loaded"):
        format_data(data_dir, out, "tokens", speech_tokenizer=made, channel="mean")
    assert {path.name for path in out.rglob("*") if path.is_file()} <= {".lock"}
    with pytest.raises(RuntimeError, match="encoder .* cannot be loaded"):
        make_tokenizer(data_dir, tmp_path / "other", spec, 6, channel="mean")
    assert not (tmp_path / "other").exists()
