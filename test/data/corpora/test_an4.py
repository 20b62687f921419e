import io
import tarfile

import pytest

from espnet_dus.data.corpora.an4 import find_corpus, prepare_an4
from espnet_dus.data.corpora.pydoc_text import write_pydoc_text
from espnet_dus.io import read_scp

TRAIN = """\
<s> YES </s> (an251-fash-b)
<s> ENTER SIX TWO </s> (an253-fash-b)

<s> GO </s> (cen8-aabb-b)
"""
TEST = "RUBOUT G M E F THREE NINE (an406-fcaw-b)\n"
AUDIO = [
    "an4_clstk/fash/an251-fash-b.sph",
    "an4_clstk/fash/an253-fash-b.sph",
    "an4_clstk/aabb/cen8-aabb-b.sph",
    "an4test_clstk/fcaw/an406-fcaw-b.sph",
]


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "corpus" / "an4"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "an4_train.transcription").write_text(TRAIN)
    (root / "etc" / "an4_test.transcription").write_text(TEST)
    for name in AUDIO:
        path = root / "wav" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"NIST_1A")
    return root


@pytest.fixture
def archive(corpus, tmp_path):
    path = tmp_path / "an4_sphere.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(corpus, "downloads/an4")
    return path


def test_split_is_the_first_utterances_by_speaker_for_validation(corpus, tmp_path):
    prepare_an4(corpus, tmp_path / "data", num_dev=1)
    assert read_scp(tmp_path / "data/train_dev/text") == {"aabb-cen8-b": "go"}
    assert read_scp(tmp_path / "data/train_nodev/text") == {
        "fash-an251-b": "yes",
        "fash-an253-b": "enter six two",
    }
    assert read_scp(tmp_path / "data/test/text") == {
        "fcaw-an406-b": "rubout g m e f three nine"
    }
    assert read_scp(tmp_path / "data/train_nodev/utt2spk")["fash-an253-b"] == "fash"
    assert read_scp(tmp_path / "data/train_nodev/spk2utt") == {
        "fash": "fash-an251-b fash-an253-b"
    }
    assert read_scp(tmp_path / "data/test/wav.scp") == {
        "fcaw-an406-b": str(corpus / "wav/an4test_clstk/fcaw/an406-fcaw-b.sph")
    }


@pytest.mark.parametrize("num_dev", [0, 3])
def test_a_set_must_not_be_empty(corpus, tmp_path, num_dev):
    with pytest.raises(ValueError, match=f"from 1 to 2 of 3, got {num_dev}"):
        prepare_an4(corpus, tmp_path / "data", num_dev)


def test_missing_audio_and_odd_transcript_are_named(corpus, tmp_path):
    (corpus / "wav" / AUDIO[1]).unlink()
    with pytest.raises(
        ValueError, match="transcription:2: .*an253-fash-b.sph: no such"
    ):
        prepare_an4(corpus, tmp_path / "data", 1)
    (corpus / "etc" / "an4_train.transcription").write_text("<s> YES </s>\n")
    with pytest.raises(ValueError, match="transcription:1: expected .* got '<s> YES"):
        prepare_an4(corpus, tmp_path / "data", 1)
    assert not (tmp_path / "data").exists()


def test_a_directory_is_used_where_it_is(corpus, tmp_path):
    assert find_corpus(str(corpus), tmp_path / "downloads") == corpus
    assert find_corpus(str(corpus.parent), tmp_path / "downloads") == corpus
    assert not (tmp_path / "downloads").exists()
    with pytest.raises(ValueError, match="no etc/an4_train.transcription"):
        find_corpus(str(corpus / "wav"), tmp_path / "downloads")


def test_an_archive_is_extracted_once(archive, tmp_path):
    root = find_corpus(str(archive), tmp_path / "downloads")
    assert root == tmp_path / "downloads" / "an4"
    assert (root / "wav" / AUDIO[0]).read_bytes() == b"NIST_1A"
    assert [path.name for path in root.parent.iterdir()] == ["an4"]
    archive.unlink()
    assert find_corpus(str(archive), tmp_path / "downloads") == root


def test_a_damaged_archive_leaves_nothing_behind(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(ValueError, match="an4_sphere.tar.gz: not an archive"):
        find_corpus(str(archive), tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside"])
def test_an_archive_cannot_write_elsewhere(tmp_path, name):
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"bad"))
    with pytest.raises(ValueError, match="evil.tar"):
        find_corpus(str(path), tmp_path / "downloads")
    assert not (tmp_path / "outside").exists()
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_url_is_downloaded(archive, server, tmp_path):
    root = find_corpus(f"{server}/an4_sphere.tar.gz", tmp_path / "downloads")
    assert (root / "etc" / "an4_test.transcription").read_text() == TEST
    with pytest.raises(RuntimeError, match="cannot download .*nothing.tar.gz: .*404"):
        find_corpus(f"{server}/nothing.tar.gz", tmp_path / "other")


def test_the_espnet_package_has_a_few_utterances(tmp_path):
    root = find_corpus("espnet", tmp_path / "downloads")
    sets = prepare_an4(root, tmp_path / "data", num_dev=1)
    sizes = {name: len(data) for name, data in sets.items()}
    assert sizes == {"train": 5, "train_nodev": 4, "train_dev": 1, "test": 2}


def test_pydoc_text_is_two_to_three_thousand_words(tmp_path):
    words = write_pydoc_text(tmp_path / "pydoc.txt")
    assert 2000 < words < 3000
    assert len((tmp_path / "pydoc.txt").read_text().split()) == words
