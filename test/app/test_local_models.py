"""Models by name: experiments, checkpoints, packs."""

import json
import shutil
import zipfile

import pytest
import yaml

from espnet_dus.local_models import (
    LocalModel,
    experiment_files,
    find_models,
    load,
    training_directory,
)


@pytest.fixture
def root(experiment, tmp_path, monkeypatch):
    """A directory with an experiment, one without checkpoint, one of another task."""
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache")
    )
    recipe = tmp_path / "egs2" / "toy" / "dus1"
    shutil.copytree(experiment.parents[1], recipe)
    exp = recipe / "exp"
    (exp / "untrained").mkdir()
    shutil.copy(exp / "dus_toy" / "config.yaml", exp / "untrained")
    shutil.copytree(exp / "dus_toy", exp / "asr")
    (exp / "asr" / "config.yaml").write_text("encoder: conformer\n")
    params = {"trained": 12, "total": 40, "base_lm": {"name": "tiny"}}
    (exp / "dus_toy" / "params.json").write_text(json.dumps(params))
    return tmp_path


def test_a_model_is_loaded_from_any_directory(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    speech2text = load(str(experiment))
    assert speech2text.search.word_times
    assert speech2text.fs == 16000


def test_a_checkpoint_stands_for_its_experiment(root):
    directory = root / "egs2/toy/dus1/exp/dus_toy"
    (directory / "3epoch.pth").touch()
    config = directory / "config.yaml"
    assert experiment_files(directory) == (config, directory / "valid.acc.ave.pth")
    assert experiment_files(directory / "3epoch.pth") == (
        config,
        directory / "3epoch.pth",
    )
    with pytest.raises(ValueError, match="no checkpoint 4epoch.pth; there are: 3epoch"):
        experiment_files(directory / "4epoch.pth")
    with pytest.raises(ValueError, match="untrained: no checkpoint .*are: none"):
        experiment_files(directory.with_name("untrained"))
    with pytest.raises(ValueError, match="no config.yaml there"):
        experiment_files(root)


def test_a_file_that_the_configuration_names_and_that_is_gone_is_named(root):
    recipe = root / "egs2/toy/dus1"
    config = recipe / "exp/dus_toy/config.yaml"
    options = yaml.safe_load(config.read_text())
    options["base_lm"] = str(experiment_base := recipe / "lm")
    experiment_base.mkdir()
    config.write_text(yaml.safe_dump(options))
    assert training_directory(config) == recipe
    shutil.rmtree(recipe / "data")
    with pytest.raises(
        ValueError, match="files that are not there .*: ctc_units: data"
    ):
        training_directory(config)


def test_trained_experiments_and_packs_are_listed(root):
    exp = root / "egs2/toy/dus1/exp"
    meta = {
        "yaml_files": {"asr_train_config": "exp/x/config.yaml"},
        "base_lm": {"name": "SmolLM2"},
    }
    with zipfile.ZipFile(exp / "dus_toy" / "model.zip", "w") as pack:
        pack.writestr("meta.yaml", yaml.safe_dump(meta))
        pack.writestr("exp/x/config.yaml", "adaptation: lora\nbase_lm: data/base_lm\n")
    with zipfile.ZipFile(exp / "dus_toy" / "other.zip", "w") as archive:
        archive.writestr("README", "no model")
    assert find_models(root) == [
        LocalModel(str(exp / "dus_toy"), "dus transformer all", "tiny", 12),
        LocalModel(str(exp / "dus_toy" / "model.zip"), "lora", "SmolLM2"),
    ]


def test_fetched_models_are_listed_by_their_hub_ids(root, tmp_path):
    shutil.rmtree(root / "egs2")
    snapshot = tmp_path / "cache/models--me--dus/snapshots/abc"
    snapshot.mkdir(parents=True)
    other = tmp_path / "cache/models--me--asr/snapshots/def"
    other.mkdir(parents=True)
    (other / "meta.yaml").write_text("yaml_files: {}\n")
    (snapshot / "config.yaml").write_text("adaptation: full\nbase_lm: x\n")
    meta = {
        "yaml_files": {"asr_train_config": "config.yaml"},
        "base_lm": {"name": "SmolLM2"},
    }
    (snapshot / "meta.yaml").write_text(yaml.safe_dump(meta))
    assert find_models(root) == [LocalModel("me/dus@abc", "full", "SmolLM2")]
