"""RESULTS.md in ESPnet's format."""

import json

import pytest

from espnet_dus.app import cli
from espnet_dus.evaluation import report
from espnet_dus.evaluation.report import write_results


def make_result(exp_dir, name, score, utterances=130, interval=True):
    path = exp_dir / name / f"score_{score}" / "result.txt"
    path.parent.mkdir(parents=True)
    path.write_text(
        f"| SPKR    | # Snt # Wrd |\n"
        f"| Sum/Avg | {utterances} 773 | 93.1 5.2 1.7 0.6 7.6 29.2 |\n"
        + ("\n# Err 95 % interval 5.5 9.9 (bootstrap over utterances)\n" * interval)
    )


def cells(text):
    """Cells of the rows of Markdown tables."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


@pytest.fixture
def exp_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "exp/dus_x"
    make_result(directory, "decode_a/test", "wer")
    make_result(directory, "decode_a/test", "cer", interval=False)
    make_result(directory, "decode_a/tiny", "wer", utterances=4)
    return directory


def test_tables_have_a_row_per_set(exp_dir):
    text = write_results(exp_dir)
    wer = text[text.index("### WER") : text.index("### CER")]
    rows = cells(wer)
    assert rows[0] == "dataset Snt Wrd Corr Sub Del Ins Err S.Err".split()
    assert rows[2] == "decode_a/test 130 773 93.1 5.2 1.7 0.6 7.6 29.2".split()
    assert "decode_a/test: 95 % interval of Err 5.5 to 9.9" in wer
    cer = text[text.index("### CER") :]
    assert cells(cer)[2][:3] == ["decode_a/test", "130", "773"]
    assert "interval" not in cer
    assert (exp_dir / "RESULTS.md").read_text() == text


def test_small_set_is_called_too_small(exp_dir):
    lines = write_results(exp_dir).splitlines()
    said = [line for line in lines if "too small" in line]
    assert said == [
        "- decode_a/tiny: the set of 4 utterances is too small to measure anything"
    ]


def test_environments_name_the_versions(exp_dir):
    import torch

    text = write_results(exp_dir)
    for what in ("date", "python version", "espnet version", "transformers version"):
        assert f"- {what}: `" in text
    assert f"- pytorch version: `pytorch {torch.__version__.split('+')[0]}" in text


def test_commit_is_unknown_outside_a_checkout(exp_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(
        report, "__file__", str(tmp_path / "lib/espnet_dus/evaluation/report.py")
    )
    assert "- espnet_dus Git hash: `unknown`" in write_results(exp_dir)


def test_commit_of_a_checkout_is_given(exp_dir, tmp_path, monkeypatch):
    import subprocess

    root = tmp_path / "checkout"
    (root / "espnet_dus").mkdir(parents=True)
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "m"], check=True)
    done = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    monkeypatch.setattr(
        report, "__file__", str(root / "espnet_dus/evaluation/report.py")
    )
    assert f"Git hash: `{done.stdout.strip()}`" in write_results(exp_dir)


def test_configuration_and_counts_are_given_where_known(exp_dir):
    assert "Params" not in write_results(exp_dir)
    (exp_dir / "config.yaml").write_text(
        "config: conf/train_dus.yaml\nlog_level: INFO\n"
    )
    base_lm = {"name": "SmolLM2", "revision": "main", "sha256": "0123456789abcdef"}
    (exp_dir / "params.json").write_text(
        json.dumps({"trained": 2_500_000, "total": 10_000_000, "base_lm": base_lm})
    )
    text = write_results(exp_dir)
    assert "- ASR config: [conf/train_dus.yaml](conf/train_dus.yaml)" in text
    assert "- Params: 2.50 M trained of 10.00 M (25.0 %)" in text
    assert "`SmolLM2` main sha256 `0123456789ab`" in text


def test_text_results_are_included(exp_dir):
    path = exp_dir / "valid.acc.best/text_eval/results.json"
    path.parent.mkdir(parents=True)
    perplexity = {"base": 20.0, "adapted": 22.5, "delta": 2.5, "standard_error": 0.25}
    path.write_text(
        json.dumps(
            {
                "adapted": "exp/dus_x/valid.acc.ave.pth",
                "checkpoint": "0123456789abcdef",
                "identical_tokens": 0,
                "dropped_tokens": 64,
                "texts": {
                    "wiki": {
                        "items": 9,
                        "metrics": {"word_perplexity": perplexity},
                        "kl_per_token": 0.125,
                    }
                },
                "tasks": {},
                "mean_delta": None,
            }
        )
    )
    text = write_results(exp_dir)
    checkpoint = "`exp/dus_x/valid.acc.ave.pth` sha256 `0123456789ab`"
    assert f"### Text\n\n- adapted model: {checkpoint}\n" in text
    rows = cells(text[text.index("### Text") :])
    wiki = ["wiki", "9", "word_perplexity", "20.00"]
    assert rows[2] == [*wiki, "kept", "22.50", "+2.50 +- 0.25", "0.1250"]
    assert rows[3] == [*wiki, "dropped", "20.00", "0 exactly", "0.0000"]
    assert "verified bit for bit on 64 tokens" in text


def test_nothing_scored_is_an_error(tmp_path, capsys):
    with pytest.raises(ValueError, match="score first"):
        write_results(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["results", "--exp_dir", str(tmp_path / "none")])
    assert "no such experiment directory" in capsys.readouterr().err


def test_command_prints_the_page(exp_dir, capsys):
    cli.main(["results", "--exp_dir", "exp/dus_x"])
    out = capsys.readouterr().out
    assert "## exp/dus_x" in out and "### WER" in out
