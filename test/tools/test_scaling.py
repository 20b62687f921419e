"""The documents on long trainings say what the command prints."""

import re
from pathlib import Path

import numpy as np
import pytest
import scaling

from espnet_dus.data.shards.cuts import token_cut
from espnet_dus.data.shards.shar_writer import write_blocks

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
    assert len(tables) == 7
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


def test_the_size_of_token_shards_is_that_of_their_tar_files(tmp_path):
    tokens = np.zeros((600, 9), np.int32)  # 12 s
    cuts = [token_cut(f"utterance-{n}", 12.0, "a", "b", tokens) for n in range(200)]
    identity = {"name": "opuslm", "sha256": "0"}
    write_blocks([cuts], lambda cuts, _: cuts, tmp_path / "s", "x", tokenizer=identity)
    (tar,) = (tmp_path / "s/shards").glob("tokens.*.tar")
    assert scaling.shard_bytes(12.0) == 12800
    assert tar.stat().st_size == pytest.approx(200 * 12800, rel=0.005)  # and its end


def test_tokens_and_features_are_compared_for_the_same_training(capsys):
    scaling.main(["--config_dir", str(TUNING), "--updates", "1000", "--contexts", "2"])
    title = "Speech tokens beside features"
    out = capsys.readouterr().out
    arms = {"e_branchformer_interleaved": 50, "encoder": 12.5, "interleaved": 50}
    assert column(out, title, "positions/s") == {
        f"{size}_{arm}": rate for size in ("360m", "1.7b") for arm, rate in arms.items()
    }
    hours = column(out, title, "GPU-hours of a training")
    for arm, rate in column(out, title, "tokens/s of a GPU").items():
        assert hours[arm] == pytest.approx(1000 * 2 * 8192 / rate / 3600, abs=0.5)
    passes = column(out, title, "passes of a training")
    of_pass = column(out, title, "G tokens of a pass")
    for arm, count in passes.items():
        assert count == pytest.approx(1000 * 2 * 8192 / of_pass[arm] / 1e9, abs=0.05)
    # 12 s: 600 or 150 speech positions, 3 of the prompt, 34 of the transcript
    assert of_pass["360m_interleaved"] == pytest.approx(14.4e6 * 637 / 1e9, abs=0.005)
    assert of_pass["360m_encoder"] == pytest.approx(14.4e6 * 187 / 1e9, abs=0.005)


def test_a_directory_without_configurations_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--config_dir", str(tmp_path)])
    assert "expected files such as train_dus_360m_lora.yaml" in capsys.readouterr().err


def test_the_check_list_for_gpus_has_every_arm():
    text = (ROOT / "doc/gpu.md").read_text(encoding="utf-8")
    for path in TUNING.glob("train_dus_*.yaml"):
        size, arm = re.fullmatch(r"train_dus_(360m|1\.7b)_(.+)", path.stem).groups()
        assert f"|{size}|{arm}|" in text
