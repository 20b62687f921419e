"""What an earlier version of this package wrote loads and transcribes the same."""

import shutil
from pathlib import Path

import pytest

from espnet_dus.search.speech2text import Speech2Text

DATA = Path(__file__).parent / "data" / "earlier_version"
SEARCH = dict(beam_size=3, ctc_weight=0.3, no_speech=0.0)
TRANSCRIPTS = ["hello world", "how are you today", "yes", "stop the dog"]


def transcribe(speech2text, noises):
    return [(h.text, h.score) for h in speech2text(noises(1.3, 1.6, 0.9, 1.4))]


def with_scores(*scores):
    return list(zip(TRANSCRIPTS, (pytest.approx(score, abs=1e-3) for score in scores)))


def test_a_checkpoint_of_an_earlier_version_transcribes_the_same(
    tmp_path, monkeypatch, noises
):
    shutil.copytree(DATA, tmp_path / "recipe")
    monkeypatch.chdir(tmp_path / "recipe")  # the paths in config.yaml start here
    exp = Path("transformer_all")
    speech2text = Speech2Text(
        exp / "config.yaml", exp / "valid.acc.ave.pth", search=SEARCH
    )
    assert transcribe(speech2text, noises) == with_scores(
        -18.22515, -28.50388, -8.18654, -23.28588
    )


def test_a_pack_of_an_earlier_version_transcribes_the_same(cache, noises):
    speech2text = Speech2Text.from_pretrained(
        DATA / "e_branchformer_speech.zip", DATA / "base_lm", search=SEARCH
    )
    assert transcribe(speech2text, noises) == with_scores(
        -22.86867, -35.53581, -8.48159, -27.12455
    )
