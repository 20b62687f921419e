"""A small trained model as stages 11 to 13 leave it, and its pack."""

import os
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

RESULTS = """# RESULTS
## exp/dus_tiny
### WER

|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|
|---|---|---|---|---|---|---|---|---|
|decode/test|130|773|98.2|1.3|0.5|0.1|1.9|7.7|

### Text

|text or task|items|metric|base|adapted|delta|KL per token|
|---|---|---|---|---|---|---|
|wiki|9|token_perplexity|20.00|20.00|+0.00|0.0000|
"""


@pytest.fixture(scope="session")
def experiment(tmp_path_factory, tiny_options, tiny_model, tiny_base_lm_dir, randomise):
    """A recipe's directory with a trained model; its `exp` is a link to elsewhere.

    `root`: the directory; `exp`: the experiment in it; `base_lm`: its base LM.
    """
    root = tmp_path_factory.mktemp("recipe")
    scratch = tmp_path_factory.mktemp("scratch") / "big_disk"
    (scratch / "dus_tiny" / "images").mkdir(parents=True)
    (root / "exp").symlink_to(scratch)
    (root / "data").mkdir()
    exp = root / "exp" / "dus_tiny"
    here = os.getcwd()
    os.chdir(root)
    try:
        options = tiny_options()
        shutil.copytree(options.ctc_units, "data/units")
        feats = np.random.default_rng(0).standard_normal((50, 20))
        np.savez(
            "exp/stats.npz", count=50, sum=feats.sum(0), sum_square=(feats**2).sum(0)
        )
        paths = dict(
            ctc_units="data/units",
            normalize="global_mvn",
            normalize_conf={"stats_file": "exp/stats.npz"},
        )
        model = randomise(tiny_model(**paths), seed=3)
        torch.save(model.state_dict(), exp / "valid.acc.ave_2best.pth")
        config = vars(tiny_options(**paths))
        config["output_dir"] = str(exp)
        config["config"] = "conf/train_dus.yaml"
        config["train_data_path_and_name_and_type"] = [["dump/text", "text", "text"]]
        (exp / "config.yaml").write_text(yaml.safe_dump(config))
    finally:
        os.chdir(here)
    (exp / "valid.acc.ave.pth").symlink_to("valid.acc.ave_2best.pth")
    (exp / "RESULTS.md").write_text(RESULTS)
    (exp / "images" / "loss.png").write_bytes(b"a picture")
    return SimpleNamespace(root=root, exp=exp, base_lm=tiny_base_lm_dir)


@pytest.fixture
def in_recipe(experiment, monkeypatch):
    """The experiment, with its recipe's directory as the working directory."""
    monkeypatch.chdir(experiment.root)
    return experiment


@pytest.fixture(scope="session")
def packed(experiment, tmp_path_factory):
    """The pack of the experiment."""
    from espnet_dus.zoo.pack import pack

    path = tmp_path_factory.mktemp("published") / "dus_tiny.zip"
    here = os.getcwd()
    os.chdir(experiment.root)
    try:
        exp = Path("exp/dus_tiny")
        pack(exp / "config.yaml", exp / "valid.acc.ave.pth", path)
    finally:
        os.chdir(here)
    return path


@pytest.fixture
def tampered(packed, tmp_path):
    """Return a function that makes a pack with changed members.

    Members by name; a function changes what was there, None leaves it out.
    """

    def make(**changes):
        changes = {name.replace("__", "/"): change for name, change in changes.items()}
        return rewrite(packed, tmp_path / "tampered.zip", changes)

    return make


def rewrite(source, path, changes):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            change = changes.pop(info.filename, lambda content: content)
            if change is not None:
                new.writestr(info, change(old.read(info)))
        for name, content in changes.items():
            new.writestr(name, content)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache of fetched files; the hub cannot be reached."""
    import huggingface_hub.constants

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hub = home / ".cache" / "huggingface" / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return home / ".cache"


@pytest.fixture(scope="session")
def transcribe(noises):
    """Return a function that transcribes some speech with a Speech2Text.

    The transcripts, which may be short, and the best token at every position.
    """

    @torch.no_grad()
    def call(speech2text):
        speech, model = noises(0.5, 0.8), speech2text.model
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(s) for s in speech], batch_first=True
        )
        embedded = model.embed_speech(padded, torch.tensor([len(s) for s in speech]))
        nothing = torch.zeros((2, 0), dtype=torch.long)
        none = nothing, torch.zeros(2, dtype=torch.long)
        seq = model.join_text(*embedded, *none)
        hidden = model.upper(model.lower(seq), seq)
        tokens = model.lm.lm_head(hidden).argmax(-1).tolist()
        return [h.text for h in speech2text(speech)], tokens

    return call
