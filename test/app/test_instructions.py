"""The evaluation of instructions, from recordings to its tables."""

import json

import pytest
import yaml

from espnet_dus.app import cli
from espnet_dus.data.audio import read_file
from espnet_dus.evaluation.instructions import TASKS
from espnet_dus.search.instruction import chat_text, conversation

SAID = "rubout the letters three nine"


@pytest.fixture
def data_dir(tmp_path, recording):
    """A data directory of one recording of words, and one of letters."""
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / "text").write_text(f"utt1 {SAID}\nutt2 a b c d\n")
    (directory / "wav.scp").write_text(f"utt1 {recording}\nutt2 {recording}\n")
    (directory / "utt2spk").write_text("utt1 spk\nutt2 spk\n")
    return directory


def evaluate(capsys, *options, code=0):
    with pytest.raises(SystemExit) as ended:
        cli.main(["instruction_eval", *map(str, options)])
        raise SystemExit(0)
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return out, err


def test_models_hear_and_the_base_lm_reads_the_transcript(
    experiment, loaded, data_dir, recording, tmp_path, capsys
):
    options = ("--data_dir", data_dir, "--out_dir", tmp_path, "--num_utterances", 1)
    options += ("--model", experiment, experiment, "--max_new_tokens", 9)
    out, _ = evaluate(capsys, *options)
    assert (tmp_path / "instructions.md").read_text() == out
    results = json.loads((tmp_path / "instructions.json").read_text())
    assert results["said"] == {"utt1": SAID}
    answers = {(a["model"], a["task"]): a for a in results["answers"]}
    reference = "tiny-random-llama, given the transcript"
    assert {model for model, _ in answers} == {str(experiment), reference}
    assert len(results["answers"]) == 3 * len(TASKS)  # the reference once

    speech = read_file(recording, 16000)
    for name, task in TASKS.items():
        asked = task.instruction, task.examples
        heard = loaded.ask(speech, *asked, max_new_tokens=9)
        assert answers[str(experiment), name]["text"] == heard
        text = chat_text(
            loaded.model.tokenizer,
            conversation(loaded.model.tokenizer, *asked, SAID),
        )
        read = loaded.generate_text(text, 9, drop_added_layers=True)
        assert answers[reference, name]["text"] == read != heard


def test_full_fine_tuning_has_no_reference(
    tiny_model, tiny_options, data_dir, tmp_path, capsys, caplog
):
    import torch

    directory = tmp_path / "full"
    directory.mkdir()
    conf = dict(adaptation="full", adaptation_conf={}, model_conf={"ctc_weight": 0.0})
    options = vars(tiny_options(**conf, ctc_units=None))
    (directory / "config.yaml").write_text(yaml.safe_dump(options))
    model = tiny_model(**conf, ctc_units=None)
    torch.save(model.state_dict(), directory / "model.pth")
    options = ("--data_dir", data_dir, "--out_dir", tmp_path, "--num_utterances", 1)
    options += ("--model", directory, "--max_new_tokens", 2)
    out, _ = evaluate(capsys, *options)
    assert "no reference: every model has overwritten" in caplog.text
    assert "given the transcript" not in out
    assert len(json.loads((tmp_path / "instructions.json").read_text())["answers"]) == 5


def test_too_few_utterances_of_words_are_an_error(data_dir, tmp_path, capsys):
    options = ("--data_dir", data_dir, "--out_dir", tmp_path, "--model", "none")
    _, err = evaluate(capsys, *options, code=1)
    assert "error: 6 different utterances of at least 4 words" in err
