"""Models by name: experiments, checkpoints, packs."""

import json
import shutil
import zipfile

import pytest
import yaml

from espnet_dus.app.local_models import (
    LocalModel,
    experiment_files,
    find_models,
    load,
    training_directory,
)


@pytest.fixture
def root(experiment, tmp_path, monkeypatch):
    """A directory with an experiment, one without checkpoint, one of another task."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
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


def test_a_pack_gives_the_transcript_of_its_experiment(
    experiment, loaded, recording, tiny_base_lm_dir, tmp_path, monkeypatch
):
    from espnet_dus.app.transcription import transcribe
    from espnet_dus.zoo.pack import pack

    monkeypatch.chdir(experiment.parents[1])
    archive = tmp_path / "exp" / "toy.zip"
    pack(experiment / "config.yaml", experiment / "valid.acc.ave.pth", archive)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    speech2text = load(str(archive), str(tiny_base_lm_dir))
    speech2text.search = loaded.search
    expected = transcribe(loaded, recording)
    assert transcribe(speech2text, recording) == expected and expected.text
    # a pack is listed once, and when it was fetched, from everywhere
    for where in (tmp_path, tmp_path / "cache"):
        wanted = LocalModel(str(archive), "dus transformer all", "tiny-random-llama")
        assert find_models(where) == [wanted]
    with pytest.raises(ValueError, match="is for packs and hub ids"):
        load(str(experiment), str(tiny_base_lm_dir))


def test_a_checkpoint_names_its_experiment(root):
    directory = root / "egs2/toy/dus1/exp/dus_toy"
    (directory / "3epoch.pth").touch()
    config = directory / "config.yaml"
    assert experiment_files(directory) == (config, directory / "valid.acc.ave.pth")
    assert experiment_files(directory / "3epoch.pth") == (
        config,
        directory / "3epoch.pth",
    )
    with pytest.raises(
        ValueError, match="no checkpoint 4epoch.pth; its checkpoints: 3epoch"
    ):
        experiment_files(directory / "4epoch.pth")
    with pytest.raises(
        ValueError, match="untrained: no checkpoint .*checkpoints: none"
    ):
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
    with pytest.raises(ValueError, match="files that do not exist .*: ctc_units: data"):
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


def test_files_of_others_are_passed_over_and_damaged_ones_named(root, caplog):
    exp = root / "egs2/toy/dus1/exp"
    listed = find_models(root)
    packs = {
        # a pack of another task, one without what it names, one of something else
        "espnet": {"files": {}, "yaml_files": {"asr_train_config": "c.yaml"}},
        "damaged": {"yaml_files": {}, "base_lm": {"name": "x"}},
        "number": 3,
    }
    for name, meta in packs.items():
        with zipfile.ZipFile(exp / "asr" / f"{name}.zip", "w") as pack:
            pack.writestr("meta.yaml", yaml.safe_dump(meta))
    for name, content in {"tab": b"a: 1\n\tb: [\n", "latin": b"a: \xe9\n"}.items():
        (exp / name).mkdir()
        (exp / name / "config.yaml").write_bytes(content)
        (exp / name / "latest.pth").touch()
    (exp / "asr" / "config.yaml").write_text("")
    assert find_models(root) == listed
    skipped = {message.split(" is skipped")[0] for message in caplog.messages}
    assert skipped == {
        str(exp / name)
        for name in (
            *("asr/damaged.zip", "asr/number.zip"),
            *("tab/config.yaml", "latin/config.yaml"),
        )
    }
