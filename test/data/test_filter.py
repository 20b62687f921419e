import pytest

from espnet_dus.app import cli
from espnet_dus.data.data_dir import DataDir
from espnet_dus.data.filter import filter_data
from espnet_dus.io import read_scp


@pytest.fixture
def dump(tmp_path):
    """A dump of five utterances at 100 Hz, from 1 to 5 seconds; d has no words."""
    samples = {"a": 100, "b": 200, "c": 300, "d": 400, "e": 500}
    tables = {
        "text": {key: "" if key == "d" else "X" for key in samples},
        "utt2spk": dict.fromkeys(samples, "s"),
        "feats.scp": {key: f"feats.1.ark:{key}" for key in samples},
        "utt2num_frames": {key: str(n // 10) for key, n in samples.items()},
        "utt2num_samples": {key: str(n) for key, n in samples.items()},
    }
    attributes = {"feats_type": "fbank", "feats_dim": "80", "fs": "100"}
    path = tmp_path / "org"
    DataDir(path, tables, attributes).write(path)
    return path


def test_durations_are_strictly_between_the_limits_in_all_tables(dump, tmp_path):
    out = tmp_path / "out"
    cli.main(
        ["filter_data", "--in_dir", f"{dump}", "--out_dir", f"{out}"]
        + ["--min_wav_duration", "1", "--max_wav_duration", "5"]
    )
    for table in ("text", "utt2spk", "feats.scp", "utt2num_frames", "utt2num_samples"):
        assert list(read_scp(out / table)) == ["b", "c"]
    assert (out / "spk2utt").read_text() == "s b c\n"
    assert (out / "feats_type").read_text() == "fbank\n"
    assert (out / "feats_dim").read_text() == "80\n"


def test_a_limit_is_met_exactly_whatever_its_fraction(dump, tmp_path):
    data = DataDir.read(dump)
    data.attributes["fs"] = "16000"
    data.tables["utt2num_samples"] = dict(zip("abcde", ["1119", "1120", *"111"]))
    data.write(dump)
    filter_data(dump, tmp_path / "out", 0.01, 0.07)
    assert list(read_scp(tmp_path / "out/text")) == ["a"]
    filter_data(dump, tmp_path / "out", 0.01, float("inf"))
    assert list(read_scp(tmp_path / "out/text")) == ["a", "b"]


def test_what_was_dropped_is_reported_with_the_reason(dump, tmp_path, caplog):
    caplog.set_level("INFO")
    filter_data(dump, tmp_path / "out", 1.0, 5.0)
    assert "kept 2 of 5" in caplog.text
    assert "1 too short, 1 too long, 1 empty text" in caplog.text


def test_nothing_left_is_an_error(dump, tmp_path):
    with pytest.raises(ValueError, match="none of 5 utterances is left .*5 too short"):
        filter_data(dump, tmp_path / "out", 10, 20)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limits", [(5, 5), (-1, 5), (float("nan"), 5)])
def test_limits_that_make_no_sense_are_an_error(dump, tmp_path, limits):
    with pytest.raises(ValueError, match="expected 0 <= min_wav_duration < max"):
        filter_data(dump, tmp_path / "out", *limits)


def test_a_directory_that_stage_3_did_not_write_is_an_error(make_data_dir, tmp_path):
    with pytest.raises(ValueError, match="which stage 3 writes; run it first"):
        filter_data(make_data_dir({"a": 1.0}), tmp_path / "out")
