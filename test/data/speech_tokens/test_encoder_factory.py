"""What `--tokenizer` may name, and encoders that cannot be loaded."""

import pytest
import yaml

from espnet_dus.data.speech_tokens.encoder_factory import make_encoder, read_spec


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
