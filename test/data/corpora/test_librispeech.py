"""LibriSpeech: its layout, synthetic and real, becomes ESPnet's sets."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_dus.app import cli
from espnet_dus.data.corpora import librispeech
from espnet_dus.data.corpora.librispeech import (
    SETS,
    find_librispeech,
    prepare_librispeech,
)
from espnet_dus.data.data_dir import DataDir
from espnet_dus.io import read_scp

MINI = Path(__file__).resolve().parents[4] / "shared/data/librispeech_mini"


def write_chapter(root, part, reader, chapter, texts):
    path = root / part / str(reader) / str(chapter)
    path.mkdir(parents=True)
    lines = ""
    for n, text in enumerate(texts):
        key = f"{reader}-{chapter}-{n:04d}"
        soundfile.write(path / f"{key}.flac", np.zeros(1600, np.int16), 16000)
        lines += f"{key} {text}\n"
    (path / f"{reader}-{chapter}.trans.txt").write_text(lines)
    return path


@pytest.fixture
def corpus(tmp_path):
    """Every part, each with a chapter of two utterances."""
    root = tmp_path / "corpus" / "LibriSpeech"
    for reader, part in enumerate(librispeech.ARCHIVES, 10):
        write_chapter(
            root, part, reader, 7, ["HELLO WORLD", f"IT'S {part[:3].upper()}"]
        )
    return root


def test_parts_become_espnets_sets(corpus, tmp_path):
    cli.main(
        [
            "prepare_librispeech",
            "--corpus",
            str(corpus.parent),
            "--out_dir",
            str(tmp_path / "data"),
        ]
    )
    sizes = {}
    for name in SETS:
        data = DataDir.read(tmp_path / "data" / name)
        data.validate()
        sizes[name] = len(data)
    assert sizes == dict(
        train_960=6, dev=4, dev_clean=2, dev_other=2, test_clean=2, test_other=2
    )
    text = read_scp(tmp_path / "data/dev_clean/text")
    assert text == {"10-7-0000": "hello world", "10-7-0001": "it's dev"}
    assert read_scp(tmp_path / "data/dev_clean/utt2spk")["10-7-0000"] == "10-7"
    path = read_scp(tmp_path / "data/dev_clean/wav.scp")["10-7-0000"]
    assert Path(path).is_file()


def test_real_librispeech_is_read(tmp_path):
    if not MINI.is_dir():
        pytest.skip(f"{MINI} is not there")
    sets = {"train": ["train-clean-100"], "test_other": ["test-other"]}
    parts = [part for of_set in sets.values() for part in of_set]
    root = find_librispeech(str(MINI), parts, tmp_path)
    data = prepare_librispeech(root, tmp_path, sets)
    assert [len(data[name]) for name in sets] == [228, 100]
    readers = {spk.split("-")[0] for spk in data["train"].tables["utt2spk"].values()}
    assert len(readers) == 228
    words = " ".join(data["test_other"].tables["text"].values())
    assert set(words) <= set("abcdefghijklmnopqrstuvwxyz' ")


@pytest.mark.parametrize(
    "line, message",
    [
        ("10-7-0009 WORDS", "10-7-0009.flac: no such file"),
        ("11-7-0000 WORDS", "expected '10-7-<number> WORDS', got '11-7-0000 WORDS'"),
        ("10-7-0000", "expected '10-7-<number> WORDS', got '10-7-0000'"),
    ],
)
def test_a_faulty_transcript_is_an_error_that_names_its_line(
    corpus, tmp_path, line, message
):
    (corpus / "dev-clean/10/7/10-7.trans.txt").write_text(line + "\n")
    with pytest.raises(ValueError, match=f"trans.txt:1: .*{message}"):
        prepare_librispeech(corpus, tmp_path / "data")


def test_a_missing_part_or_corpus_is_an_error(corpus, tmp_path, capsys):
    (corpus / "dev-other").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"the part\(s\) dev-other are missing"):
        find_librispeech(str(corpus), list(librispeech.ARCHIVES), tmp_path)
    with pytest.raises(ValueError, match="no LibriSpeech there"):
        find_librispeech(str(tmp_path / "gone"), ["dev-clean"], tmp_path)
    with pytest.raises(SystemExit):
        cli.main(
            ["prepare_librispeech", "--corpus", str(corpus), "--sets", "dev_noisy"]
        )
    assert "dev_noisy: not among train_960, dev" in capsys.readouterr().err


@pytest.fixture
def archive_url(corpus, server, tmp_path, monkeypatch):
    """Dev-clean as OpenSLR's archive, behind a URL of its own, and its MD5."""
    archive = tmp_path / "served" / "dev-clean.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(corpus / "dev-clean", "LibriSpeech/dev-clean")
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(librispeech.ARCHIVES, "dev-clean", digest)
    return f"{server}/served"


def test_a_part_is_downloaded_checked_and_extracted_once(archive_url, tmp_path):
    downloads = tmp_path / "downloads"
    for _ in range(2):
        root = find_librispeech("", ["dev-clean"], downloads, archive_url)
        data = prepare_librispeech(root, tmp_path / "data", {"dev": ["dev-clean"]})
        assert len(data["dev"]) == 2
        archive_url = "http://127.0.0.1:9/nowhere"  # not needed any more


def test_a_download_that_is_not_the_published_one_is_refused(
    archive_url, tmp_path, monkeypatch
):
    monkeypatch.setitem(librispeech.ARCHIVES, "dev-clean", "0" * 32)
    with pytest.raises(RuntimeError, match="MD5 .* expected md5:000.* got .*db.sh"):
        find_librispeech("", ["dev-clean"], tmp_path / "downloads", archive_url)
    assert not list((tmp_path / "downloads").iterdir())
