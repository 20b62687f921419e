"""The benchmarks run, and both of their sides compute the same."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_dus.config import load_config

ROOT = Path(__file__).resolve().parents[2]
TRAIN_STEP = ROOT / "tools/benchmarks/train_step.py"
TUNING = ROOT / "egs2/an4/dus1/conf/tuning/features"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def train_step():
    return load(TRAIN_STEP)


def test_added_layers_are_compared_and_the_hybrid_keeps_no_more_on_text(capsys):
    main = load(TRAIN_STEP.with_name("added_layers.py")).main
    main(["--batch", "1", "--length", "32", "--steps", "1", "--device", "cpu"])
    rows = [cells(line) for line in capsys.readouterr().out.splitlines()[2:]]
    kept = {(row[0], row[1]): float(row[6]) for row in rows}
    assert len(kept) == 5
    assert kept["text", "hybrid E-Branchformer"] < 1.2
    assert 1.3 < kept["speech", "hybrid E-Branchformer"] < 2.0


def test_packed_rows_have_less_padding_and_the_losses_of_padded_batches(
    capsys, monkeypatch
):
    packing = load(TRAIN_STEP.with_name("packing.py"))
    sizes = dict(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
    )
    monkeypatch.setitem(packing.BASE_LMS, "360m", sizes)
    options = "--tokens 512 --steps 1 --seconds 0.5 3"
    packing.main([*options.split(), "--arms", "e_branchformer_interleaved"])
    rows = [cells(line) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[2] for row in rows] == ["padded", "packed"] * 2
    for padded, packed in zip(rows[::2], rows[1::2]):
        share = {row[2]: float(row[3].rstrip("%")) for row in (padded, packed)}
        assert share["packed"] < 3 < share["padded"]
        assert padded[5] == "1.00" and float(packed[6]) < 1e-5


@pytest.fixture
def options(tmp_path, tiny_base_lm_dir):
    """Options for AN4's configurations, made small enough for the tiny base LM."""
    for arm in ("e_branchformer_speech", "lora", "full"):
        name = f"train_dus_{arm}.yaml"
        conf = load_config(TUNING / name)
        conf["base_lm_conf"]["dtype"] = "float32"
        conf["speech_embedder_conf"]["channels"] = 8
        if arm != "e_branchformer_speech":
            conf["model_conf"]["ctc_layer"] = "base:1"
        else:
            conf["adaptation_conf"].update(
                positions=[-1],
                attention_heads=4,
                linear_units=32,
                cgmlp_linear_units=32,
            )
        if arm == "lora":
            conf["adaptation_conf"]["rank"] = 2
        (tmp_path / name).write_text(yaml.safe_dump(conf), encoding="utf-8")
    common = [str(tiny_base_lm_dir), "--config_dir", str(tmp_path), "--threads", "1"]
    return common + ["--seconds", "0.8", "1.2", "--tokens", "2", "4", "--quick"]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
def test_train_step_compares_arms_and_both_sides(options):
    # a process of its own: the command forks, which asks for one that has not computed
    done = subprocess.run(
        [sys.executable, TRAIN_STEP, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    arms, plain, conditions = done.stdout.strip().split("\n\n")

    rows = {row[0]: row[1:] for row in map(cells, arms.splitlines()[2:])}
    assert set(rows) == {"full", "lora", "e_branchformer_speech"}
    assert [rows["full"][i] for i in (2, 4, 6)] == ["1.00"] * 3
    trained = {arm: int(row[0].replace(",", "")) for arm, row in rows.items()}
    assert trained["lora"] < trained["full"]
    assert all(float(row[1]) > 0 and float(row[3]) > 0.1 for row in rows.values())

    rows = {row[0]: row[1:] for row in map(cells, plain.splitlines()[2:])}
    assert set(rows) == {"full", "lora"}
    assert "2 utterances of 0.8 to 1.2 s" in conditions

    losses = re.findall(r"loss ([\d.]+), written plainly ([\d.]+)", done.stderr)
    assert len(losses) == 2
    for ours, written_plainly in losses:
        assert float(ours) == pytest.approx(float(written_plainly), rel=1e-4)


def test_train_step_refuses_sides_that_compute_different_losses(train_step):
    import torch

    class Constant(torch.nn.Module):
        def __init__(self, loss):
            super().__init__()
            self.loss = loss

        def forward(self):
            return (torch.tensor(self.loss),)

    one, other = (
        train_step.Side(Constant(loss), None, {}, None) for loss in (4.0, 5.0)
    )
    with pytest.raises(RuntimeError, match="full: .*different losses"):
        train_step.check_same("full", one, other)


def test_train_step_names_an_arm_without_a_configuration(train_step, options):
    with pytest.raises(SystemExit, match="no train_dus_<arm>.yaml .* ia3; it has e_br"):
        train_step.main([*options, "--arms", "lora", "ia3"])


# -- streaming -------------------------------------------------------------------------


@pytest.mark.slow
def test_streaming_and_espnets_iterator_are_measured(tiny_base_lm_dir):
    options = "--audio 30 --utterances 90 --espnet_utterances 40 --shard_size 10"
    options += " --batches 5 --throughput_utterances 9 --max_tokens 2048"
    done = subprocess.run(
        [sys.executable, ROOT / "tools/benchmarks/streaming.py", tiny_base_lm_dir]
        + options.split()
        + ["--buffer_size", "40"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    start, compared = done.stdout.strip().split("\n\n")
    rows = {row[0]: row[1:] for row in map(cells, start.splitlines()[2:])}
    assert rows["ESPnet, sequence"][0] == "40"
    for name in ("shards of audio", "shards of tokens"):
        assert rows[name][0] == "90"
        assert re.fullmatch(r"[\d.]+ to [\d.]+ over 5 batches", rows[name][4])
    for row in rows.values():
        assert all(float(cell) > 0 for cell in row[1:4])
    rows = {row[0]: row[1:] for row in map(cells, compared.splitlines()[2:])}
    assert all(0 <= float(cell) < 100 for cell in rows["padding (%)"])
    rates = [
        float(c.replace(",", "")) for c in rows["utterances a core reads in a second"]
    ]
    assert all(rate > 0 for rate in rates)
    ratios = [float(cell) for cell in rows["ratio to shards of audio"]]
    assert ratios == pytest.approx([rate / rates[0] for rate in rates], rel=0.1)


@pytest.fixture
def checkout(tmp_path):
    """A function that makes a checkout with a benchmark of a given speed."""

    def make(name, seconds):
        recipe = tmp_path / name / "egs2/an4/dus1"
        recipe.mkdir(parents=True)
        (recipe / "path.sh").write_text("export MAIN_ROOT=$(cd -P ../../.. && pwd)\n")
        benchmark = tmp_path / name / "tools/benchmarks/step.sh"
        benchmark.parent.mkdir(parents=True)
        # the second round is slower than the first, on both sides
        benchmark.write_text(
            "#!/bin/sh\necho x >> rounds; n=$(wc -l < rounds)\n"
            "echo '| arm | trained | s/step |'; echo '|---|---:|---:|'\n"
            f'echo "| $1 | 1,000 | $((n * {seconds})) |"\n'
        )
        benchmark.chmod(0o755)
        return tmp_path / name

    return make


def test_two_checkouts_take_turns_and_their_ratio_is_printed(checkout, capsys):
    compare = load(TRAIN_STEP.with_name("compare_checkouts.py"))
    sides = [str(checkout("old", 4)), str(checkout("new", 3))]
    compare.main([*sides, "--rounds", "2", "step.sh", "lora; exit 1"])
    out, err = capsys.readouterr()
    rows = [cells(line) for line in out.splitlines()[2:]]
    assert rows == [
        ["lora; exit 1", "trained", "1000", "1000", "1.000", "1.000 to 1.000"],
        ["lora; exit 1", "s/step", "6", "4.5", "0.750", "0.750 to 0.750"],
    ]
    assert err.splitlines() == [f"round {n}: {side}" for n in (1, 2) for side in sides]
    with pytest.raises(RuntimeError, match="new: no.py ended with code 12[67] and 0 "):
        compare.main([sides[1], sides[0], "no.py"])
