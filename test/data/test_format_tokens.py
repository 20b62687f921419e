"""Stage 3 with speech tokens: what it writes, and that it is what inference makes."""

import kaldiio
import numpy as np
import pytest
import soundfile
from espnet2.train.dataset import ESPnetDataset

from espnet_dus.data.data_dir import DataDir
from espnet_dus.data.filter import filter_data
from espnet_dus.data.format import format_data
from espnet_dus.data.speech_tokens.kmeans import make_tokenizer
from espnet_dus.data.speech_tokens.tokenizer import load_tokenizer

DURATIONS = {f"utt{n}": 0.3 + n / 7 for n in range(9)}


@pytest.fixture
def data_dir(make_data_dir):
    return make_data_dir(DURATIONS)


@pytest.fixture
def tokenizer_dir(data_dir, tmp_path):
    make_tokenizer(data_dir, tmp_path / "tokenizer", "logmel", num_clusters=5)
    return tmp_path / "tokenizer"


def dump(data_dir, out_dir, tokenizer_dir, **options):
    format_data(
        data_dir,
        out_dir,
        feats_type="tokens",
        speech_tokenizer=tokenizer_dir,
        **options,
    )
    return DataDir.read(out_dir)


def read(out_dir, name="feats.scp"):
    return {k: np.array(v) for k, v in kaldiio.load_scp(str(out_dir / name)).items()}


def tokens_of_files(data_dir, tokenizer_dir):
    """Tokens of each audio file by itself, as inference computes them."""
    tokenizer = load_tokenizer(tokenizer_dir)
    wavs = DataDir.read(data_dir).tables["wav.scp"]
    return {key: tokenizer([soundfile.read(wav)[0]])[0] for key, wav in wavs.items()}


def test_kaldi_and_espnet_read_the_tokens_that_inference_computes(
    data_dir, tokenizer_dir, tmp_path
):
    data = dump(data_dir, tmp_path / "dump", tokenizer_dir)
    assert data.attributes["feats_type"] == "tokens"
    assert data.attributes["tokenizer"].split()[0] == "logmel"
    expected = tokens_of_files(data_dir, tokenizer_dir)
    found = read(tmp_path / "dump")
    assert found.keys() == expected.keys() == data.tables["text"].keys()
    for key, vector in found.items():
        assert vector.dtype == np.int32
        np.testing.assert_array_equal(vector, expected[key][:, 0])
        assert int(data.tables["utt2num_frames"][key]) == len(vector)
        assert len(vector) == -(-int(data.tables["utt2num_samples"][key]) // 320)
    dataset = ESPnetDataset(
        [(str(tmp_path / "dump/feats.scp"), "speech", "kaldi_ark")],
        preprocess=lambda uid, data: data,
    )
    np.testing.assert_array_equal(dataset["utt3"][1]["speech"], found["utt3"])
    assert not list((tmp_path / "dump").rglob("*run_lengths*"))


def test_processes_and_interruptions_change_nothing(data_dir, tokenizer_dir, tmp_path):
    dump(data_dir, tmp_path / "one", tokenizer_dir)
    dump(data_dir, tmp_path / "two", tokenizer_dir, nj=2)
    # as if killed: some utterances in the journal are lost, and an ark
    journal = tmp_path / "two/.done"
    lines = journal.read_text().splitlines()
    lost = lines[0].split()[4].split(":")[0]
    (tmp_path / "two" / lost).unlink()
    journal.write_text("\n".join(lines[:-2]) + "\n" + lines[-1][:20])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "two/data").iterdir()}
    dump(data_dir, tmp_path / "two", tokenizer_dir)
    assert any(p.exists() and p.stat().st_mtime_ns == t for p, t in before.items())
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all((one[key] == two[key]).all() for key in one)


def test_removed_repeats_are_in_a_table_of_their_own(data_dir, tokenizer_dir, tmp_path):
    whole = tokens_of_files(data_dir, tokenizer_dir)
    make_tokenizer(data_dir, tokenizer_dir, "logmel", 5, remove_repeats=True)
    data = dump(data_dir, tmp_path / "dump", tokenizer_dir)
    tokens = read(tmp_path / "dump")
    lengths = read(tmp_path / "dump", "run_lengths.scp")
    assert sum(map(len, tokens.values())) < sum(map(len, whole.values()))
    for key in whole:
        np.testing.assert_array_equal(
            np.repeat(tokens[key], lengths[key]), whole[key][:, 0]
        )
        assert int(data.tables["utt2num_frames"][key]) == len(tokens[key])
    filter_data(tmp_path / "dump", tmp_path / "filtered", max_wav_duration=1.0)
    kept = read(tmp_path / "filtered", "run_lengths.scp")
    assert kept.keys() == {k for k, seconds in DURATIONS.items() if seconds < 1.0}


def test_another_tokenizer_makes_all_tokens_anew(data_dir, tokenizer_dir, tmp_path):
    make_tokenizer(data_dir, tokenizer_dir, "logmel", 5, remove_repeats=True)
    dump(data_dir, tmp_path / "dump", tokenizer_dir)
    make_tokenizer(data_dir, tokenizer_dir, "logmel", 4)
    data = dump(data_dir, tmp_path / "dump", tokenizer_dir)
    found = read(tmp_path / "dump")
    for key, tokens in tokens_of_files(data_dir, tokenizer_dir).items():
        np.testing.assert_array_equal(found[key], tokens[:, 0])
    assert "run_lengths.scp" not in data.tables
    assert not list((tmp_path / "dump/data").glob("run_lengths*"))


def test_audio_of_another_rate_is_converted(make_data_dir, tokenizer_dir, tmp_path):
    other = make_data_dir({"utt": 1.0}, "other", fs=44100)
    dump(other, tmp_path / "dump", tokenizer_dir)
    assert len(read(tmp_path / "dump")["utt"]) == 50


def test_channels_are_mixed(data_dir, tokenizer_dir, tmp_path):
    mono = DataDir.read(data_dir).tables["wav.scp"]["utt5"]
    samples, rate = soundfile.read(mono)
    soundfile.write(mono, np.stack([samples, samples], 1), rate)
    with pytest.raises(ValueError, match="has 2 channels"):
        dump(data_dir, tmp_path / "dump", tokenizer_dir)
    dump(data_dir, tmp_path / "dump", tokenizer_dir, channel="mean")
    expected = load_tokenizer(tokenizer_dir)([samples])[0][:, 0]
    np.testing.assert_array_equal(read(tmp_path / "dump")["utt5"], expected)


def test_bad_audio_is_named(data_dir, tokenizer_dir, tmp_path):
    (data_dir / "utt2.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="(?s)utt2.*fix these"):
        dump(data_dir, tmp_path / "dump", tokenizer_dir)
    assert not (tmp_path / "dump/text").exists()
    data = dump(data_dir, tmp_path / "dump", tokenizer_dir, max_bad_utterances=1)
    assert len(data) == 8 and "utt2" in (tmp_path / "dump/bad_utterances").read_text()


def test_options_that_do_not_fit_are_refused(data_dir, tokenizer_dir, tmp_path):
    with pytest.raises(ValueError, match="logmel takes audio of 16000 Hz, not 8000"):
        dump(data_dir, tmp_path / "dump", tokenizer_dir, fs=8000)
    with pytest.raises(ValueError, match="tokens and a speech_tokenizer go together"):
        dump(data_dir, tmp_path / "dump", None)
    assert not (tmp_path / "dump").exists()
