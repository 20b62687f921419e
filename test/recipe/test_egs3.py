"""The ESPnet3 example trains our task, and espnet_dus loads what it made."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from espnet3.utils.task_utils import get_espnet_model, get_task_class

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "egs2" / "mini_an4" / "dus1" / "egs3"


@pytest.fixture
def example(tmp_path, tiny_base_lm_dir):
    """A copy of the example with the tiny base LM and two epochs."""
    directory = tmp_path / "egs3"
    shutil.copytree(
        EXAMPLE, directory, ignore=shutil.ignore_patterns("exp", "data", "downloads")
    )
    path = directory / "conf" / "training.yaml"
    conf = yaml.safe_load(path.read_text(encoding="utf-8"))
    conf["base_lm"] = str(tiny_base_lm_dir)
    conf["model"]["base_lm_conf"]["dtype"] = "float32"
    conf["model"]["speech_embedder_conf"] = {"channels": 8}
    conf["trainer"]["max_epochs"] = 2  # the average lacks the last epoch
    path.write_text(yaml.safe_dump(conf), encoding="utf-8")
    return directory


def test_espnet3_finds_the_task_and_builds_the_model(tiny_base_lm_dir):
    conf = yaml.safe_load((EXAMPLE / "conf" / "training.yaml").read_text())
    from espnet_dus.task import DUSTask

    assert get_task_class(conf["task"]) is DUSTask
    options = {
        **conf["model"],
        "base_lm": str(tiny_base_lm_dir),
        "base_lm_conf": {"dtype": "float32"},
    }
    model = get_espnet_model(conf["task"], options)
    assert len(model.lm.model.layers) == 3 + 1  # 25 % of them, interleaved


def test_the_example_trains_and_its_model_transcribes(example, monkeypatch):
    command = [sys.executable, "run.py", "--training_config", "conf/training.yaml"]
    command += ["--stages", "create_dataset", "collect_stats", "train"]
    done = subprocess.run(command, cwd=example, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]

    import soundfile
    import torch

    from espnet_dus import Speech2Text
    from espnet_dus.io import read_scp

    exp_dir = example / "exp" / "training"
    checkpoint = exp_dir / "valid.loss.ave_1best.pth"
    names = torch.load(checkpoint, weights_only=True)
    assert "base_lm_identity" in names
    assert not any("embed_tokens" in name for name in names)  # the base LM is not saved
    monkeypatch.chdir(example)
    wavs = read_scp(example / "data" / "test" / "wav.scp")
    assert len(wavs) == 2
    speech, _ = soundfile.read(next(iter(wavs.values())))
    hypothesis = Speech2Text(exp_dir / "config.yaml", checkpoint)(speech)[0]
    assert isinstance(hypothesis.text, str) and hypothesis.score < 0
