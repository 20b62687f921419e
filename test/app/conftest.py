"""A trained tiny model as a recipe leaves it, and real speech."""

import os
import shutil
from dataclasses import replace

import pytest
import soundfile
import torch
import yaml


@pytest.fixture(scope="session")
def recording(tmp_path_factory):
    """A wav file of the few AN4 utterances in the espnet package."""
    from espnet_dus.data.corpora.an4 import find_corpus

    directory = tmp_path_factory.mktemp("recording")
    root = find_corpus("espnet", directory / "downloads")
    speech, rate = soundfile.read(sorted(root.glob("wav/an4test_clstk/*/*.sph"))[0])
    path = directory / "an4.wav"
    soundfile.write(path, speech, rate)
    return path


@pytest.fixture(scope="session")
def experiment(
    tmp_path_factory,
    tiny_base_lm_dir,
    ctc_units_dirs,
    tiny_model,
    tiny_options,
    recording,
):
    """An experiment whose paths are relative to its recipe, as training writes them.

    Its model was trained a little, to say something of several words.
    """
    from espnet_dus.task import DUSTask

    recipe = tmp_path_factory.mktemp("egs2") / "toy" / "dus1"
    directory = recipe / "exp" / "dus_toy"
    directory.mkdir(parents=True)
    shutil.copytree(ctc_units_dirs["llm"], recipe / "data" / "ctc")
    conf = dict(kind="transformer", scope="all", positions=[0, 2])
    options = tiny_options(adaptation_conf=conf)
    model = tiny_model(adaptation_conf=conf).train()

    speech, _ = soundfile.read(recording, dtype="float32")
    data = {"speech": speech, "text": "yes the dog ran after it"}
    utterance = DUSTask.build_preprocess_fn(options, train=True)("utt", data)
    _, batch = DUSTask.build_collate_fn(options, train=True)([("utt", utterance)])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()

    options = dict(vars(options), ctc_units="data/ctc")
    options["base_lm"] = os.path.relpath(tiny_base_lm_dir, recipe)
    (directory / "config.yaml").write_text(yaml.safe_dump(options))
    torch.save(model.state_dict(), directory / "valid.acc.ave.pth")
    return directory


@pytest.fixture(scope="session")
def loaded(experiment):
    """The model, loaded as the command line does it."""
    from espnet_dus.app.local_models import load

    speech2text = load(str(experiment))
    # no longer than what it has learned: chance decides on the rest
    speech2text.search = replace(speech2text.search, maxlenratio=0.4)
    return speech2text
