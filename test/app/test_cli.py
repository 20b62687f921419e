"""The command line espnet-dus, on a tiny trained model and real speech."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Optional, Sequence, Union

import pytest

from espnet_dus.app import cli
from espnet_dus.app.transcription import transcribe
from espnet_dus.bin import Commands


@pytest.fixture
def run(capsys, monkeypatch, loaded):
    """Return a function that runs the command with the model already in memory."""
    import espnet_dus.app.local_models

    monkeypatch.setattr(espnet_dus.app.local_models, "load", lambda *_, **__: loaded)

    def run(*cmd, code=0):
        try:
            cli.main([str(word) for word in cmd])
            ended = 0
        except SystemExit as error:
            ended = error.code
        out, err = capsys.readouterr()
        assert ended == code, err
        return out, err

    return run


@pytest.fixture
def expected(loaded, recording):
    transcript = transcribe(loaded, recording)
    assert transcript.text
    return transcript


HEAVY = {"torch", "transformers", "espnet2", "gradio", "numpy", "yaml"}


def run_script(script):
    """Return the last line that a script of its own prints."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("words", [["--help"], ["transcribe", "--help"]])
def test_help_imports_nothing_heavy(words):
    script = (
        "import sys\nfrom espnet_dus.app import cli\n"
        f"try:\n    cli.main({words})\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', sorted({HEAVY} & set(sys.modules)))\n"
    )
    assert run_script(script) == "loaded: []"


@pytest.mark.parametrize("command", ["transcribe", "ask"])
def test_a_command_says_what_it_does_before_anything_heavy_is_imported(command):
    words = [command, "a.wav", *(["x"] if command == "ask" else []), "--model", "exp/x"]
    script = (
        "import sys\nfrom espnet_dus.app import cli\n"
        "class FirstLine:\n"
        "    def write(self, text):\n"
        f"        print(text, sorted({HEAVY} & set(sys.modules)))\n"
        "        sys.stderr = sys.__stderr__\n"
        "        raise SystemExit(0)\n"
        "sys.stderr = FirstLine()\n"
        f"cli.main({words})\n"
    )
    assert run_script(script) == "loading exp/x []"


def test_transcribing_does_not_import_the_training():
    script = (
        "import sys\nimport espnet_dus.app.transcription\n"
        "unwanted = {'espnet2.tasks.abs_task', 'espnet2.train.trainer', 'wandb', "
        "'lm_eval', 'gradio', 'datasets', 'peft', 'numba', 'sklearn'}\n"
        "print('loaded:', sorted(unwanted & set(sys.modules)))\n"
    )
    assert run_script(script) == "loaded: []"


@pytest.mark.parametrize("name", ["train", "inference"])
def test_a_module_called_by_name_is_the_command(name, capsys):
    by_name = importlib.import_module(f"espnet_dus.bin.dus_{name}").main
    helps = []
    for main, cmd in ((cli.main, [name, "--help"]), (by_name, ["--help"])):
        with pytest.raises(SystemExit) as ended:
            main(cmd)
        assert ended.value.code == 0
        helps.append(capsys.readouterr().out)
    assert helps[0] == helps[1]
    assert "--log_level" in helps[0]


def describe(
    data_dir: Union[str, Path],
    factors: Sequence[float],
    limit: Optional[int] = None,
    channel: Optional[Union[int, str]] = None,
    dry_run: bool = False,
):
    """Describe things.

    Args:
        data_dir: A directory, 100 %
            of it.
        factors: Some numbers.
        limit: A number.
        channel: An index or a name.
        dry_run: Do nothing.
    """
    return data_dir, factors, limit, channel, dry_run


def test_the_options_of_a_command_are_the_arguments_of_its_function(capsys):
    commands = Commands("program", "Does things.")
    name = f"{__name__}:describe"
    commands.add("describe", name, "Describe.", {"factors": "speeds"}, show=repr)
    commands.run("describe --data_dir d --speeds 1 0.5 --channel 0".split())
    assert capsys.readouterr().out == "('d', [1.0, 0.5], None, '0', False)\n"
    commands = Commands("program", "Does things.")
    commands.add("describe", name, "Describe.", {"factors": "speeds"}, show=repr)
    commands.run("describe --data_dir d --speeds 2 --limit 3 --dry_run true".split())
    assert capsys.readouterr().out == "('d', [2.0], 3, None, True)\n"
    for words, message in (
        ("--data_dir d", "required: --speeds"),
        ("--data_dir d --speeds 1 --limit x", "--limit: invalid int value: 'x'"),
        ("--data_dir d --speeds 1 --dry_run yes", "expected true or false, got 'yes'"),
        ("--help", "A directory, 100 % of it."),
    ):
        commands = Commands("program", "Does things.")
        commands.add("describe", name, "Describe.", {"factors": "speeds"})
        with pytest.raises(SystemExit):
            commands.run(["describe", *words.split()])
        assert message in "".join(capsys.readouterr())


def test_every_command_describes_its_options(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = re.findall(r"^    (\w+)", capsys.readouterr().out, re.M)
    assert {"transcribe", "format_data", "pack"} <= set(listed)
    for name in set(listed) - {"train", "inference"}:  # which ESPnet's parsers describe
        with pytest.raises(SystemExit) as ended:
            cli.main([name, "--help"])
        assert ended.value.code == 0, name
        assert f"{name} [-h]" in capsys.readouterr().out


def test_words_that_a_command_does_not_know_are_an_error_that_names_them(capsys):
    cmd = ["results", "--exp_dir", "exp/x", "--exp", "3"]  # no abbreviations either
    with pytest.raises(SystemExit) as ended:
        cli.main(cmd)
    assert ended.value.code == 2
    assert "results: unrecognized arguments: --exp 3" in capsys.readouterr().err


def test_stdout_has_the_transcript_alone(run, recording, expected):
    out, err = run("transcribe", recording, "--model", "m")
    assert out == f"{expected.text}\n"
    assert f"1 of 1: {recording}, {expected.seconds:.1f} s of audio in " in err


def test_json_has_times_and_confidences_of_all_words(run, recording, expected):
    out, _ = run("transcribe", recording, "--model", "m", "--json")
    (line,) = out.splitlines()
    content = json.loads(line)
    assert content["file"] == str(recording)
    assert content["text"] == expected.text
    words = content["words"]
    assert [word["word"] for word in words] == expected.text.split()
    for word in words:
        assert 0 <= word["confidence"] <= 1
        assert 0 <= word["start"] <= word["end"] <= content["seconds"]


def test_subtitles_of_several_recordings_go_to_files(run, recording, tmp_path):
    other = tmp_path / "other.wav"
    other.write_bytes(recording.read_bytes())
    out_dir = tmp_path / "out"
    out, _ = run(
        "transcribe", recording, other, "--model", "m", "--srt", "--out_dir", out_dir
    )
    assert out == ""
    assert sorted(path.name for path in out_dir.iterdir()) == ["an4.srt", "other.srt"]
    text = (out_dir / "an4.srt").read_text()
    assert text == (out_dir / "other.srt").read_text()
    assert text.startswith("1\n00:00:0") and " --> " in text


def test_the_search_and_the_length_of_segments_are_options(
    run, recording, loaded, monkeypatch
):
    import espnet_dus.app.local_models
    from espnet_dus.search.config import SearchConfig

    asked = {}
    monkeypatch.setattr(
        espnet_dus.app.local_models,
        "load",
        lambda *_, **options: asked.update(options) or loaded,
    )
    segmented = []
    original = type(loaded).transcribe_long
    monkeypatch.setattr(
        type(loaded),
        "transcribe_long",
        lambda self, path, seconds, **options: segmented.append((seconds, options))
        or original(self, path, seconds, **options),
    )
    run("transcribe", recording, "--model", "m")
    assert SearchConfig.make(asked["search"]) == SearchConfig()
    options = ("--beam_size", 4, "--ctc_weight", 0.5, "--segment_seconds", 2.5)
    options += ("--channel", 0)
    run("transcribe", recording, "--model", "m", *options)
    assert SearchConfig.make(asked["search"]) == SearchConfig(
        beam_size=4, ctc_weight=0.5
    )
    assert segmented == [(20.0, {"channel": "mean"}), (2.5, {"channel": 0})]
    _, err = run(
        "transcribe", recording, "--model", "m", "--segment_seconds", 0.1, code=1
    )
    assert "expected at least 1.5, got 0.1" in err
    options = ("--channel", 1)
    _, err = run("transcribe", recording, "--model", "m", *options, code=1)
    assert "has no channel 1; its 1 channel(s) count from 0" in err
    options = ("--channel", "left")
    _, err = run("transcribe", recording, "--model", "m", *options, code=2)
    assert "expected the index of a channel (from 0) or mean, got 'left'" in err


def test_a_bad_recording_is_reported_and_the_others_are_done(
    run, recording, expected, tmp_path
):
    broken, missing = tmp_path / "broken.wav", tmp_path / "missing.wav"
    broken.write_bytes(b"RIFF, but no more")
    out, err = run("transcribe", broken, missing, recording, "--model", "m", code=1)
    assert out == f"{recording}: {expected.text}\n"
    assert f"error: {broken}: " in err and f"error: {missing}: " in err
    assert "error: 2 of 3 recordings failed" in err


def test_a_name_that_is_not_utf8_stops_no_command(run, recording, tmp_path):
    odd = tmp_path / os.fsdecode(b"\xff.wav")
    odd.write_bytes(recording.read_bytes())
    out_dir = tmp_path / "out"
    run("transcribe", odd, "--model", "m", "--json", "--out_dir", out_dir)
    (file,) = out_dir.iterdir()
    assert json.loads(file.read_text())["file"] == str(odd)
    run("transcribe", odd, "--model", "m")


def test_recordings_of_one_name_are_refused_before_anything_is_written(
    run, recording, tmp_path
):
    other = tmp_path / "an4.flac"
    _, err = run(
        "transcribe", recording, other, "--model", "m", "--out_dir", tmp_path, code=1
    )
    assert "two recordings have the same name" in err
    assert list(tmp_path.iterdir()) == []


def test_subtitles_without_word_times_are_an_error(run, recording, loaded, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(loaded, "search", replace(loaded.search, word_times=False))
    _, err = run("transcribe", recording, "--model", "m", "--srt", code=1)
    assert "subtitles need word times" in err
    out, _ = run("transcribe", recording, "--model", "m", "--json")
    assert {word["start"] for word in json.loads(out)["words"]} == {None}


def test_an_instruction_on_a_recording_is_answered_word_by_word(run, recording, loaded):
    from espnet_dus.data.audio import read_file

    asked = "ask", recording, "Say it backwards.", "--model", "m"
    options = "--example", "one two", "two one", "--max_new_tokens", 7
    out, _ = run(*asked, *options)
    speech = read_file(recording, 16000)
    answer = loaded.ask(speech, "Say it backwards.", [("one two", "two one")], 7)
    assert answer and out.strip() == answer
    out, _ = run(*asked, "--max_new_tokens", 7)
    assert out.strip() == loaded.ask(speech, "Say it backwards.", [], 7) != answer


def test_a_recording_too_short_to_ask_about_is_named(run, tmp_path):
    import numpy as np
    import soundfile

    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(50), 8000)
    _, err = run("ask", short, "Translate it.", "--model", "m", code=1)
    assert f"error: {short}: has 100 samples" in err


def test_chat_answers_each_line_until_an_empty_one(run, loaded, monkeypatch):
    lines = iter(["hello", "the cat", "", "never read"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    out, _ = run("chat", "--model", "m", "--max_new_tokens", "5", "--base")
    answers = [loaded.generate_text(text, 5, "kept") for text in ("hello", "the cat")]
    shown = out.splitlines()[1:]
    assert shown[0::2] == answers
    # scope `all`, in some training state: the base LM says something else
    assert all(line.startswith("base LM: ") for line in shown[1::2])
    assert next(lines) == "never read"


def test_chat_with_drop_answers_as_the_base_lm(run, loaded, monkeypatch):
    lines = iter(["the cat", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    out, _ = run("chat", "--model", "m", "--max_new_tokens", "5", "--drop")
    answer = loaded.generate_text("the cat", 5, drop_added_layers=True)
    assert answer != loaded.generate_text("the cat", 5, "kept")
    assert out.splitlines()[1:] == [answer]


def test_info_shows_where_the_inserted_layers_are(run, loaded):
    out, _ = run("info", "m")
    assert "base LM tiny-random-llama" in out
    rows = [line.split("  ")[0] for line in out.splitlines()]
    assert [row for row in rows if "base layer" in row or row.startswith("+")] == [
        "+ added transformer",
        "| base layers 1 to 2",
        "+ added transformer",
        "| base layer 0",
    ]
    from espnet_dus.model.checkpoint import parameter_counts

    counts = parameter_counts(loaded.model)
    assert f"Trained: {counts['trained']:,} parameters" in out
    assert f"of {counts['total']:,}." in out


def test_no_model_and_no_models_are_errors_that_say_what_to_do(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for cmd, message in (
        (["models", "--root", str(tmp_path)], "error: no models: "),
        (["info", str(tmp_path)], f"error: {tmp_path}: no config.yaml there"),
    ):
        with pytest.raises(SystemExit):
            cli.main(cmd)
        assert message in capsys.readouterr().err
