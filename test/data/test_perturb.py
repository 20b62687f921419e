import pytest

from espnet_dus.app import cli
from espnet_dus.data.data_dir import DataDir
from espnet_dus.data.perturb import perturb_speed
from espnet_dus.io import read_scp


def test_ids_and_speakers_are_prefixed_except_at_speed_one(make_data_dir, tmp_path):
    data, out = make_data_dir({"a": 0.1, "b": 0.1}), tmp_path / "train_sp"
    cli.main(
        ["perturb_speed", "--data_dir", f"{data}", "--factors", "0.9", "1.0", "1.1"]
        + ["--out_dir", f"{out}"]
    )
    DataDir.read(out).validate()
    assert read_scp(out / "utt2speed") == {
        "a": "1.0",
        "b": "1.0",
        "sp0.9-a": "0.9",
        "sp0.9-b": "0.9",
        "sp1.1-a": "1.1",
        "sp1.1-b": "1.1",
    }
    assert read_scp(out / "spk2utt")["sp1.1-spk"] == "sp1.1-a sp1.1-b"
    assert read_scp(out / "text")["sp0.9-a"] == "WORDS OF a"
    assert read_scp(out / "wav.scp")["sp0.9-a"] == f"{data / 'a.wav'}"


def test_segments_keep_their_recording(make_data_dir, tmp_path):
    data, out = make_data_dir({"a": 1.0}), tmp_path / "out"
    (data / "segments").write_text("a a 0.25 0.5\n")
    perturb_speed(data, [1.0, 1.1], out)
    DataDir.read(out).validate()
    assert read_scp(out / "segments")["sp1.1-a"] == "a 0.25 0.5"
    assert list(read_scp(out / "wav.scp")) == ["a"]


@pytest.mark.parametrize(
    "factors", [["0"], ["-1"], ["fast"], ["nan"], ["3"], ["0.9", "0.90"], []]
)
def test_bad_factors_are_an_error_and_write_nothing(make_data_dir, tmp_path, factors):
    with pytest.raises(ValueError, match="expected (a )?speed factor"):
        perturb_speed(make_data_dir({"a": 0.1}), factors, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_perturbing_twice_is_an_error(make_data_dir, tmp_path):
    perturb_speed(make_data_dir({"a": 0.1}), [0.9], tmp_path / "once")
    with pytest.raises(ValueError, match="utt2speed: speed perturbation was already"):
        perturb_speed(tmp_path / "once", [0.9], tmp_path / "twice")
    with pytest.raises(ValueError, match="both the input and the output"):
        perturb_speed(tmp_path / "once", [0.9], tmp_path / "once")
