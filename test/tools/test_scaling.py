"""The documents on long trainings say what the command prints."""

import re
from pathlib import Path

import pytest
import scaling

ROOT = Path(__file__).resolve().parents[2]
TUNING = ROOT / "egs2/TEMPLATE/dus1/conf/tuning/paper"


def column(text, title, name):
    """Return a column of a table as numbers, by base LM and arm."""
    table = text.split(f"{title}\n\n")[1].split("\n\n")[0].splitlines()
    place = table[0].split("|").index(name)
    rows = [line.split("|") for line in table[2:]]
    return {
        "_".join(row[1:3]): float(row[place].replace(",", "").rstrip("%"))
        for row in rows
    }


def test_the_tables_of_the_document_are_those_of_the_command(capsys):
    scaling.main(["--config_dir", str(TUNING)])
    document = (ROOT / "doc/scaling.md").read_text(encoding="utf-8")
    tables = re.findall(
        r"^### (.+?)\n\n(.+?)\n\n", capsys.readouterr().out, re.M | re.S
    )
    assert len(tables) == 5
    for title, table in tables:
        assert f"## {title}\n\n{table}\n" in document, title


def test_other_data_and_hardware_give_other_figures(capsys, tmp_path):
    for arm in ("full", "lora"):
        name = f"train_dus_1.7b_{arm}.yaml"
        (tmp_path / name).symlink_to(TUNING / name)  # counts as the file it leads to
    options = ["--config_dir", str(tmp_path), "--hours", "960", "--peak_tflops", "312"]
    scaling.main([*options, "--mfu", "0.5", "--gpus", "4"])
    out = capsys.readouterr().out
    hours = column(out, "Time of an epoch", "GPU-hours")
    flops = column(out, "Time of an epoch", "EFLOP")
    assert hours.keys() == {"1.7b_full", "1.7b_lora"}
    # GPU-hours are printed with one digit behind the point
    expected = flops["1.7b_full"] * 1e18 / (312e12 * 0.5) / 3600
    assert hours["1.7b_full"] == pytest.approx(expected, abs=0.15)
    trained = column(out, "Memory without activations", "trained, M")
    state = column(out, "Checkpoints", "state to resume from, GB")
    for arm, millions in trained.items():
        assert state[arm] == pytest.approx(millions * 12 / 1000, abs=0.01)


def test_a_directory_without_configurations_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--config_dir", str(tmp_path)])
    assert "expected files such as train_dus_360m_lora.yaml" in capsys.readouterr().err


def test_the_check_list_for_gpus_has_every_arm():
    text = (ROOT / "doc/gpu.md").read_text(encoding="utf-8")
    for path in TUNING.glob("train_dus_*.yaml"):
        size, arm = re.fullmatch(r"train_dus_(360m|1\.7b)_(.+)", path.stem).groups()
        assert f"|{size}|{arm}|" in text
