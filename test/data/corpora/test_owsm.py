"""OWSM's English ASR part: what is taken, left out and counted."""

import shutil

import pytest

from espnet_dus.data.corpora.owsm import prepare_owsm
from espnet_dus.data.data_dir import DataDir

TEST_SENTENCE = "one two three four five six seven eight"
UTTERANCES = {
    # id: (seconds, transcript)
    "rec_000000000_000003600_eng_asr": (3.6, "<na> Hello, World!"),
    "rec_000004000_000034000_eng_asr": (30.0, "a long one"),
    "rec_000034000_000036000_eng_asr": (2.0, "too short"),
    "rec_000036000_000067000_eng_asr": (31.0, "too long"),
    "rec_000067000_000077000_eng_asr": (10.0, "in 1984"),
    "rec_000077000_000087000_eng_asr": (10.0, f"and {TEST_SENTENCE} and so on"),
    "rec_000087000_000097000_deu_asr": (10.0, "hallo welt"),
    "rec_000097000_000107000_eng_st_deu": (10.0, "hallo welt"),
}


@pytest.fixture(params=["text.ctc", "text"])
def owsm(request, tmp_path):
    directory = tmp_path / "train"
    directory.mkdir()
    start, segments, texts = 0.0, "", ""
    for key, (seconds, text) in UTTERANCES.items():
        segments += f"{key} rec {start} {start + seconds}\n"
        texts += f"{key} {text}\n"
        start += seconds
    (directory / "segments").write_text(segments)
    (directory / "wav.scp").write_text("rec /audio/rec.flac\n")
    (directory / request.param).write_text(texts)
    if request.param == "text.ctc":
        lines = (f"{key} <eng><asr><0.00> noise" for key in UTTERANCES)
        (directory / "text").write_text("\n".join(lines))
    return directory


def test_english_asr_of_3_to_30_seconds_is_taken(owsm, tmp_path, caplog):
    caplog.set_level("INFO")
    out_dir, held_out = tmp_path / "data/train_owsm", tmp_path / "data/test"
    tables = {"text": {"u": TEST_SENTENCE}, "utt2spk": {"u": "u"}}
    DataDir(held_out, tables).write(held_out)
    hours = prepare_owsm([owsm], out_dir, [held_out])
    data = DataDir.read(out_dir)
    data.validate()
    assert data.tables["text"] == {
        "rec_000000000_000003600_eng_asr": "hello world",
        "rec_000004000_000034000_eng_asr": "a long one",
    }
    assert hours == pytest.approx(33.6 / 3600)
    assert "kept: 0.01 h" in caplog.text
    assert "test sentence: 0.00 h" in caplog.text
    assert "too short or too long: 0.01 h" in caplog.text
    first, _ = data.utterances()
    assert (first.wav, first.start, first.end) == ("/audio/rec.flac", 0.0, 3.6)


def test_a_recording_that_is_missing_or_another_one_is_named(owsm, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(owsm, other)
    for path in other.iterdir():
        path.write_text(path.read_text().replace("rec_0", "x_rec_0"))
    assert prepare_owsm([owsm, other], tmp_path / "out", []) > 0
    (other / "wav.scp").write_text("rec /audio/of/another/corpus.flac\n")
    with pytest.raises(ValueError, match="other/wav.scp: rec is another file than in"):
        prepare_owsm([owsm, other], tmp_path / "out", [])
    (other / "wav.scp").write_text("record /audio/rec.flac\n")
    with pytest.raises(ValueError, match="other/wav.scp: no rec$"):
        prepare_owsm([owsm, other], tmp_path / "out", [])


def test_what_is_missing_or_twice_is_named(owsm, tmp_path):
    with pytest.raises(ValueError, match="occurs twice"):
        prepare_owsm([owsm, owsm], tmp_path / "out", [])
    with pytest.raises(ValueError, match="no utterance is left.*_eng_asr"):
        prepare_owsm(
            [owsm], tmp_path / "out", [], min_duration=100.0, max_duration=200.0
        )
    lines = (owsm / "segments").read_text().splitlines()[1:]
    (owsm / "segments").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="segments: no utterance rec_000000000"):
        prepare_owsm([owsm], tmp_path / "out", [])
    assert not (tmp_path / "out").exists()
