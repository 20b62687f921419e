"""The benchmark of decoding runs; what it measures is not looked at."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

from espnet_dus.data.corpora.an4 import find_corpus

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "tools/benchmarks"


@pytest.fixture
def experiment(tmp_path, tiny_model, tiny_options, randomise):
    """A tiny experiment, and a data directory with two utterances."""
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp/config.yaml").write_text(yaml.safe_dump(vars(tiny_options())))
    model = tiny_model()
    randomise(model.lm, seed=3)
    torch.save(model.state_dict(), tmp_path / "exp/valid.acc.ave.pth")
    tables = {"wav.scp": "", "text": ""}
    corpus = find_corpus("espnet", tmp_path)
    for key, path in zip("ab", sorted(corpus.rglob("an25*.sph"))):  # yes, go
        soundfile.write(tmp_path / f"{key}.wav", *soundfile.read(path))
        tables["wav.scp"] += f"{key} {tmp_path / key}.wav\n"
        tables["text"] += f"{key} one two\n"
    for name, lines in tables.items():
        (tmp_path / name).write_text(lines)
    return tmp_path


@pytest.mark.slow
def test_the_benchmark_compares_searches_and_a_peer(experiment):
    command = [sys.executable, BENCHMARKS / "decode.py", experiment / "exp", experiment]
    command += ["--dtypes", "float32", "--peers", "espnet", "--long", "1", "2"]
    command += ["--threads", "1", "--output", experiment / "result.json"]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((experiment / "result.json").read_text())
    rows = {(r["system"], r["search"], r["batch"]): r for r in result["rows"]}
    ours = [("ours", s, b) for s in ("greedy", "CTC draft", "joint beam") for b in "1m"]
    assert [(s, n, b[0]) for s, n, b in rows] == [*ours, ("espnet", "greedy", "1")]
    assert all(r["audio_seconds"] == pytest.approx(1.7) for r in rows.values())
    assert all(r["seconds"] > 0 and r["rtfx"] > 0 for r in rows.values())
    # as many tokens are forced as ours are
    greedy = rows["ours", "greedy", "1"]
    assert rows["espnet", "greedy", "1"]["tokens"] == greedy["llm_passes"] >= 2
    assert "wer" not in rows["espnet", "greedy", "1"]
    assert set(greedy) >= {"wer", "wer_normalized", "llm_passes"}
    side = result["ours"]["float32"]
    assert set(side["differing"]) == {
        "greedy: batched and batch 1",
        "CTC draft: batched and batch 1",
        "joint beam: batched and batch 1",
        "CTC draft and greedy",
    }
    assert all(set(keys) <= {"a", "b"} for keys in side["differing"].values())
    assert [r["audio_seconds"] for r in side["long"]] == [1, 2]
    assert [r["tokens"] for r in side["long"]] == sorted(
        r["tokens"] for r in side["long"]
    )
    assert len(side["inserted"]) == 8 and "silence, guards" in side["inserted"]
    assert "greedy, batch many, float32 / espnet" in result["ratios"]
    tables = done.stdout.strip().split("\n\n")
    assert len(tables) == 7
    assert tables[0].count("\n") == 1 + len(rows)
    assert "| ours, greedy | float32 | many |" in tables[0]


@pytest.fixture(scope="module")
def normalize():
    path = BENCHMARKS / "decode_peers.py"
    spec = importlib.util.spec_from_file_location("decode_peers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda text: module.normalize(text, {"rubout", "erase", "october", "march"})


@pytest.mark.parametrize(
    "reference, hypothesis",
    [
        ("erase c q q f seven", "Erase CQQ-F7."),
        ("rubout g m e f three nine", " Rub out GMEF39"),
        ("eleven twenty seven fifty seven", "11:27, 57"),
        ("october twenty fourth nineteen seventy", "October 24th, 1970."),
        ("march third oh five", "March 3rd, 05"),
        ("twenty third thirty zero thirty five", "23rd 30 0 35"),
        ("o'b", "OB"),
    ],
)
def test_one_spelling_for_all(normalize, reference, hypothesis):
    assert normalize(reference) == normalize(hypothesis)


def test_different_words_stay_different(normalize):
    assert normalize("fifteen") != normalize("fifty")
    assert normalize("erase a") != normalize("eras a")
    assert normalize("eight") == "8" != normalize("a t")
