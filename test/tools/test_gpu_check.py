"""The check of a GPU runs, at toy size, on a CPU."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOC = "before\n<!-- gpu_check: begin -->\nnot run\n<!-- gpu_check: end -->\nafter\n"


@pytest.fixture(scope="module")
def gpu_check():
    sys.path.insert(0, str(ROOT / "tools/benchmarks"))  # its processes import it too
    yield importlib.import_module("gpu_check")
    sys.path.remove(str(ROOT / "tools/benchmarks"))


@pytest.mark.slow
def test_every_check_passes_and_the_tables_are_filled(gpu_check, tmp_path):
    doc, out = tmp_path / "gpu.md", tmp_path / "out.json"
    doc.write_text(DOC)
    options = ["--toy", "--sizes", "360m", "--arms", "e_branchformer_interleaved"]
    options += ["--compile_backend", "eager", "--out", str(out), "--doc", str(doc)]
    code = gpu_check.main(options)
    checks = json.loads(out.read_text())["checks"]
    assert not [name for name, found in checks.items() if "error" in found]
    assert code == 0
    assert checks["kill and resume"]["result"] == {"resumed": True, "epochs": 2}
    assert checks["two processes"]["result"] == {"epochs": 2}
    assert all(rate > 0 for rate in checks["decoding"]["result"].values())
    kept, recomputed = checks["360m e_branchformer_interleaved sdpa"]["result"]
    assert (kept["checkpointing"], recomputed["checkpointing"]) == (False, True)
    # two utterances of 50 frames, 3 tokens and the 11 bytes of the prompt
    assert kept["step_seconds"] * kept["tokens_per_second"] == pytest.approx(2 * 64)
    text = doc.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "not run" not in text
    assert "| 360m e_branchformer_interleaved sdpa" in text


def test_a_check_that_fails_is_noted_and_reported(gpu_check):
    def fail():
        raise RuntimeError("no such kernel\nmore")

    results = {}
    gpu_check.attempt(results, "attention", fail)
    assert results["attention"]["error"] == "RuntimeError: no such kernel\nmore"
    text = gpu_check.report({"device": "CPU"}, results)
    assert "no such kernel" in text and "more" not in text


def test_a_document_without_the_marks_is_an_error(gpu_check, tmp_path):
    path = tmp_path / "gpu.md"
    path.write_text("# no marks\n")
    with pytest.raises(ValueError, match="gpu.md: expected the lines <!-- gpu_check"):
        gpu_check.fill(path, "tables")


def test_the_document_has_the_marks(gpu_check):
    text = (ROOT / "doc/gpu.md").read_text(encoding="utf-8")
    assert text.count(gpu_check.BEGIN) == text.count(gpu_check.END) == 1
