"""Public corpora: what is held out, and the way from a corpus to shards."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from espnet_dus.app import cli
from espnet_dus.data.corpora.english import CORPORA
from espnet_dus.data.corpora.held_out import HeldOut
from espnet_dus.data.shards.mix import read_weights
from espnet_dus.data.shards.shar import read_info

RECIPE = Path(__file__).resolve().parents[3] / "egs2" / "english_48k" / "dus1"
TEST_TEXT = "he hoped there would be stew for dinner turnips and carrots"


@pytest.fixture
def held_out():
    return HeldOut([TEST_TEXT, "stuff it into you", "yes sir"], ["1089", "121"])


@pytest.mark.parametrize(
    "text, speaker, reason",
    [
        ("a sentence of another book that nobody knows", "7", None),
        ("a sentence of another book", "1089", "test speaker"),
        (TEST_TEXT, "7", "test sentence"),
        ("and hoped there would be stew for dinner turnips", None, "test sentence"),
        ("and hoped there would be stew for dinner", None, None),  # seven words
        ("stuff it into you", None, "test sentence"),
        ("stuff it into you now", None, None),
        ("yes sir", None, None),  # too short to give anything away
    ],
)
def test_speakers_and_sentences_of_the_test_sets_are_held_out(
    held_out, text, speaker, reason
):
    assert held_out.reason(text, speaker) == reason


def test_held_out_sets_are_read_from_data_directories(tmp_path):
    for name, key, text in (
        ("test_clean", "1089-134686-0000", TEST_TEXT.upper()),
        ("dev", "84-121123-0001", "GO ON DO YOU HEAR"),
    ):
        path = tmp_path / name
        path.mkdir()
        (path / "text").write_text(f"{key} {text}\n")
        (path / "utt2spk").write_text(f"{key} {key.rpartition('-')[0]}\n")
    held_out = HeldOut.read([tmp_path / "test_clean", tmp_path / "dev"])
    assert held_out.speakers == {"1089", "84"}
    assert held_out.reason(TEST_TEXT, None) == "test sentence"
    assert held_out.reason("go on do you hear", None) == "test sentence"
    assert held_out.digest() != HeldOut([], []).digest()


@pytest.fixture
def mls(tmp_path):
    """MLS's layout: a reader of the test set, and one that is not."""
    root = tmp_path / "mls" / "mls_english"
    texts = {
        "1089_99_000000": "this reader is in the test set",
        "200_99_000000": "a free sentence",
        "200_99_000001": TEST_TEXT,
        "200_99_000002": "chapter 12",
        "200_99_000003": "another free sentence",
        "200_99_000004": "much too short",
        "200_99_000005": "no audio in this one",
    }
    for split in ("train", "dev", "test"):
        lines = ""
        for key, text in texts.items():
            path = root / split / "audio" / key.split("_")[0] / "99" / f"{key}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            samples = 1600 if text == "much too short" else 9600
            soundfile.write(path, np.ones(samples, np.int16), 16000)
            lines += f"{key}\t{text}\n"
        (root / split / "transcripts.txt").write_text(lines)
    (root / "metainfo.txt").write_text("1089 | M | x\n200 | F | x\n")
    return root.parent


@pytest.fixture
def test_set(tmp_path):
    path = tmp_path / "data" / "test_clean"
    path.mkdir(parents=True)
    (path / "text").write_text(f"1089-1-0 {TEST_TEXT}\n")
    (path / "utt2spk").write_text("1089-1-0 1089-1\n")
    return path


def prepare(corpus, corpus_dir, test_set, out):
    options = ["--corpus", corpus, "--corpus_dir", str(corpus_dir)]
    options += ["--manifest_dir", f"{out}.manifests", "--held_out", str(test_set)]
    cli.main(["prepare_corpus", *options, "--out_dir", str(out), "--shard_size", "2"])


def test_a_corpus_becomes_shards_without_what_is_held_out(
    mls, test_set, tmp_path, caplog
):
    from lhotse import CutSet

    from espnet_dus.data.shards.shar import list_shards

    out = tmp_path / "shar" / "mls"
    caplog.set_level("INFO")
    prepare("mls", mls, test_set, out)
    assert read_info(out).num_utterances == 3
    cuts = {}
    for shard in list_shards(out):
        fields = {name: [path] for name, path in shard.items()}
        cuts.update({cut.id: cut for cut in CutSet.from_shar(fields=fields)})
    assert {key: cut.supervisions[0].text for key, cut in cuts.items()} == {
        "200_99_000000": "a free sentence",
        "200_99_000003": "another free sentence",
        "200_99_000005": "no audio in this one",
    }
    for reason in ("test speaker", "test sentence", "too short", "cannot be written"):
        assert re.search(f"{reason}.*: 1 of 7", caplog.text)
    before = (out / "info.json").stat().st_mtime_ns
    prepare("mls", mls, test_set, out)  # nothing to do
    assert (out / "info.json").stat().st_mtime_ns == before


def test_an_unreadable_file_is_named(mls, test_set, tmp_path, capsys):
    prepare("mls", mls, test_set, tmp_path / "shar")  # lhotse's manifests are made
    path = mls / "mls_english/train/audio/200/99/200_99_000005.flac"
    path.write_bytes(b"no audio")
    (test_set / "text").write_text("1089-1-0 other words\n")  # so that it is redone
    with pytest.raises(SystemExit):
        prepare("mls", mls, test_set, tmp_path / "shar")
    assert "utterance 200_99_000005: " in capsys.readouterr().err


def test_a_wrong_name_or_place_is_an_error(test_set, tmp_path, capsys):
    for corpus, place, message in (
        ("mlss", tmp_path, "corpus 'mlss': not among mls, "),
        ("mls", tmp_path / "nowhere", "is not a directory: set it in db.sh"),
        ("mls", test_set, "no part english/train was found there"),
    ):
        with pytest.raises(SystemExit):
            prepare(corpus, place, test_set, tmp_path / "out")
        assert message in capsys.readouterr().err


def test_lhotse_prepares_every_corpus():
    import inspect

    import lhotse.recipes

    for corpus in CORPORA.values():
        function = getattr(lhotse.recipes, f"prepare_{corpus.recipe}")
        parameters = set(inspect.signature(function).parameters)
        assert {"output_dir", "num_jobs", *corpus.options} <= parameters


def test_the_mix_names_known_corpora_and_reaches_48k_hours():
    mix = RECIPE / "conf" / "mix.yaml"
    names = {Path(name).name for name in yaml.safe_load(mix.read_text())}
    assert names == {"train_960", *CORPORA} - {"mls_opus"}
    rows = re.findall(
        r"^\| `(\w+)` \|.*?\| ([\d,.]+) \|", (RECIPE / "README.md").read_text(), re.M
    )
    hours = {name: float(value.replace(",", "")) for name, value in rows}
    assert set(hours) == names
    total = sum(hours[Path(n).name] * w for n, w in read_weights(str(mix)).items())
    assert 48000 <= total < 49000
