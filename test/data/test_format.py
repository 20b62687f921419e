import errno
import os
import subprocess
import threading

import kaldiio
import numpy as np
import pytest
import soundfile

from espnet_dus.app import cli
from espnet_dus.data import dump
from espnet_dus.data.data_dir import DataDir
from espnet_dus.data.format import format_data
from espnet_dus.data.journal import Record, append_journal, read_journal
from espnet_dus.io import locked, read_scp


def snapshot(path):
    """Time of change by file, to see what a second run has written."""
    return {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def written(before, path, suffix):
    after = snapshot(path)
    return {
        file.name
        for file in after
        if file.suffix == suffix and after[file] != before.get(file)
    }


@pytest.mark.parametrize("audio_format", ["flac", "wav"])
def test_raw_is_dumped_in_espnets_layout(make_data_dir, tmp_path, audio_format, noise):
    data, out = make_data_dir({"b": 0.3, "a": 0.2}), tmp_path / "dump"
    cli.main(
        ["format_data", "--data_dir", f"{data}", "--out_dir", f"{out}"]
        + ["--feats_type", "raw"]
        + ["--fs", "16k", "--audio_format", audio_format, "--nj", "2"]
    )
    DataDir.read(out).validate()
    assert read_scp(out / "utt2num_samples") == {"a": "3200", "b": "4800"}
    assert read_scp(out / "text")["a"] == "WORDS OF a"
    assert (out / "spk2utt").read_text() == "spk a b\n"
    for name, value in dict(
        feats_type="raw", audio_format=audio_format, fs="16000"
    ).items():
        assert (out / name).read_text() == f"{value}\n"
    path = read_scp(out / "wav.scp")["b"]
    assert path.endswith(f".{audio_format}") and str(out / "data") in path
    samples, fs = soundfile.read(path, dtype="int16")
    assert fs == 16000 and (samples == noise(0.3, seed=0)).all()


def test_prompts_go_with_their_utterances(make_data_dir, tmp_path):
    data, out = make_data_dir({"a": 0.2, "b": 0.3}), tmp_path / "dump"
    (data / "prompt").write_text("a Translate:\nb Write:\n")
    format_data(data, out)
    assert read_scp(out / "prompt") == {"a": "Translate:", "b": "Write:"}
    (data / "prompt").write_text("a Translate:\n")
    with pytest.raises(ValueError, match="utterance b is in .*text, not in prompt"):
        format_data(data, out)


def test_segments_speeds_and_rates_are_applied(make_data_dir, tmp_path):
    data, out = make_data_dir({"a": 2.0}, fs=8000), tmp_path / "dump"
    (data / "segments").write_text("a a 0.5 1.6\n")
    (data / "utt2speed").write_text("a 1.1\n")
    format_data(data, out)
    assert read_scp(out / "utt2num_samples") == {"a": "16000"}
    assert not (out / "segments").exists() and not (out / "utt2speed").exists()
    assert soundfile.info(read_scp(out / "wav.scp")["a"]).frames == 16000


def test_fbank_equals_what_the_frontend_computes_from_raw(make_data_dir, tmp_path):
    import torch
    from espnet2.asr.frontend.default import DefaultFrontend
    from espnet2.fileio.sound_scp import SoundScpReader

    data = make_data_dir({"a": 0.5, "b": 0.31}, fs=22050)
    format_data(data, tmp_path / "raw", "raw")
    format_data(data, tmp_path / "fbank", "fbank")
    frontend = DefaultFrontend(
        fs="16k", n_fft=512, win_length=400, hop_length=160, center=False
    )
    features = kaldiio.load_scp(str(tmp_path / "fbank/feats.scp"))
    sound = SoundScpReader(tmp_path / "raw/wav.scp", dtype="float32")
    for key in ("a", "b"):
        speech = torch.tensor(sound[key][1])[None]
        expected, lengths = frontend(speech, torch.tensor([speech.shape[1]]))
        assert features[key].shape == (lengths[0], 80)
        np.testing.assert_allclose(features[key], expected[0], rtol=0, atol=1e-4)
        assert read_scp(tmp_path / "fbank/utt2num_frames")[key] == str(int(lengths[0]))
    assert read_scp(tmp_path / "fbank/utt2num_samples") == read_scp(
        tmp_path / "raw/utt2num_samples"
    )
    assert (tmp_path / "fbank/feats_dim").read_text() == "80\n"
    assert not (tmp_path / "fbank/wav.scp").exists()
    DataDir.read(tmp_path / "fbank").validate()


def test_a_second_run_does_only_what_is_missing_or_changed(
    make_data_dir, tmp_path, noise
):
    durations = {key: 0.1 for key in "abcde"}
    data, out = make_data_dir(durations), tmp_path / "dump"
    format_data(data, out)
    before = snapshot(out)
    format_data(data, out)
    assert written(before, out, ".flac") == set()
    paths = read_scp(out / "wav.scp")
    os.remove(paths["a"])
    os.truncate(paths["b"], 10)
    soundfile.write(data / "c.wav", noise(0.2), 16000)
    (data / "utt2speed").write_text("a 1\nb 1\nc 1\nd 0.9\ne 1\n")
    format_data(data, out)
    assert written(before, out, ".flac") == {"a.flac", "b.flac", "c.flac", "d.flac"}
    assert soundfile.info(paths["b"]).frames == 1600
    assert read_scp(out / "utt2num_samples") == {
        "a": "1600",
        "b": "1600",
        "c": "3200",
        "d": "1778",
        "e": "1600",
    }


@pytest.mark.parametrize("feats_type", ["raw", "fbank"])
def test_files_that_are_no_longer_needed_are_removed(
    make_data_dir, tmp_path, feats_type
):
    data, out = make_data_dir({"a": 0.1, "b": 0.1}), tmp_path / "dump"
    format_data(data, out, feats_type)
    first = {file for file in (out / "data").rglob("*") if file.is_file()}
    format_data(data, out, feats_type, fs=8000, audio_format="wav")
    second = {file for file in (out / "data").rglob("*") if file.is_file()}
    assert len(first) == len(second) and not first & second


def test_a_journal_line_that_was_cut_short_is_done_again(make_data_dir, tmp_path):
    data, out = make_data_dir({"a": 0.1, "b": 0.1}), tmp_path / "dump"
    format_data(data, out, "fbank")
    lines = (out / ".done").read_text()
    before = kaldiio.load_scp(str(out / "feats.scp"))["b"]
    for cut in range(1, 40):
        (out / ".done").write_text(lines[:-cut])
        format_data(data, out, "fbank")
        assert (kaldiio.load_scp(str(out / "feats.scp"))["b"] == before).all()


def test_a_line_after_one_that_was_cut_short_counts(tmp_path):
    journal = tmp_path / ".done"
    journal.write_text("a 1600 0 99 data/00/a.fl")
    record = Record(1600, 0, 99, "data/01/b.flac", "0123")
    append_journal(journal, {"b": record})
    assert read_journal(journal) == {"b": record}


def test_a_second_run_waits_for_the_first(make_data_dir, tmp_path):
    # both would write arks of the same names, with other utterances in them
    data, out = make_data_dir({"a": 0.1, "b": 0.2}), tmp_path / "dump"
    run = threading.Thread(target=format_data, args=(data, out, "fbank"))
    with locked(out):
        run.start()
        run.join(0.5)
        assert run.is_alive() and not (out / "data").exists()
    run.join()
    assert {*kaldiio.load_scp(str(out / "feats.scp"))} == {"a", "b"}


def test_a_run_that_was_stopped_is_resumed(make_data_dir, tmp_path, monkeypatch):
    data, out = make_data_dir({key: 0.1 for key in "abcdefgh"}), tmp_path / "dump"
    format_data(data, out)
    os.remove(read_scp(out / "wav.scp")["a"])
    (out / ".done").unlink()
    real, calls = dump.read_audio, []

    def interrupted(utterance, *arguments):
        calls.append(utterance.id)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(utterance, *arguments)

    monkeypatch.setattr(dump, "read_audio", interrupted)
    with pytest.raises(KeyboardInterrupt):
        format_data(data, out)
    assert not (out / "text").exists()  # nobody takes it for finished
    assert not list(out.rglob("*.tmp*"))
    stray = out / "data" / ".a.1.tmp.flac"  # as a killed process would leave it
    stray.touch()
    del calls[:6]
    monkeypatch.setattr(
        dump, "read_audio", lambda *a: calls.append(a[0].id) or real(*a)
    )
    format_data(data, out)
    assert calls == ["e", "f", "g", "h"]  # blocks of two: four were finished
    assert len(DataDir.read(out)) == 8 and not stray.exists()


def make_faulty(data):
    (data / "b.wav").unlink()
    (data / "c.wav").write_text("no audio")


@pytest.mark.parametrize("nj", [1, 2])
def test_all_faulty_audio_is_named_and_counted(make_data_dir, tmp_path, nj):
    data, out = make_data_dir({key: 0.1 for key in "abcd"}), tmp_path / "dump"
    make_faulty(data)
    with pytest.raises(ValueError) as error:
        format_data(data, out, nj=nj, max_bad_utterances=1)
    message = str(error.value)
    assert "2 faults" in message and "--max_bad_utterances 2" in message
    assert "utterance b: " in message and "No such file" in message
    assert "utterance c: " in message and "is not audio" in message
    assert list(read_scp(out / "bad_utterances")) == ["b", "c"]
    assert not (out / "text").exists()


@pytest.mark.parametrize("feats_type", ["raw", "fbank"])
def test_a_few_faulty_utterances_are_left_out_on_wish(
    make_data_dir, tmp_path, caplog, feats_type
):
    data, out = make_data_dir({key: 0.1 for key in "abcd"}), tmp_path / "dump"
    make_faulty(data)
    format_data(data, out, feats_type, max_bad_utterances=2)
    assert "left out" in caplog.text
    DataDir.read(out).validate()
    assert list(read_scp(out / "text")) == ["a", "d"]
    index = "wav.scp" if feats_type == "raw" else "feats.scp"
    assert list(read_scp(out / index)) == ["a", "d"]


def test_nothing_left_is_an_error_whatever_is_allowed(make_data_dir, tmp_path):
    data = make_data_dir({"a": 0.1})
    (data / "a.wav").unlink()
    with pytest.raises(ValueError, match="no utterance is left"):
        format_data(data, tmp_path / "dump", max_bad_utterances=9)


def test_audio_too_short_for_a_frame_is_a_fault_of_the_utterance(
    make_data_dir, tmp_path
):
    data = make_data_dir({"a": 0.01, "b": 0.1})
    with pytest.raises(ValueError, match="utterance a: .*160 samples are too few"):
        format_data(data, tmp_path / "dump", "fbank")


def test_a_key_cannot_leave_the_dump_directory(make_data_dir, tmp_path):
    data, out = make_data_dir({"a": 0.1}), tmp_path / "dump"
    for table in ("wav.scp", "text", "utt2spk"):
        line = (data / table).read_text()
        (data / table).write_text("../../../x/y" + line[1:])
    format_data(data, out)
    path = read_scp(out / "wav.scp")["../../../x/y"]
    assert os.path.realpath(path).startswith(os.path.realpath(out / "data"))
    assert soundfile.info(path).frames == 1600


@pytest.mark.parametrize("feats_type", ["raw", "fbank"])
def test_any_id_that_kaldi_allows_is_dumped(make_data_dir, tmp_path, feats_type):
    data, out = make_data_dir({"a": 0.1}), tmp_path / "dump"
    keys = ["x" * 300, "x" * 299 + "y", "京" * 90, "a/b", "a_b", "a:b", "//", "."]
    for table in ("wav.scp", "text", "utt2spk"):
        value = (data / table).read_text().split(maxsplit=1)[1]
        lines = "".join(f"{key} {value}".replace("\n", "\r\n") for key in keys)
        (data / table).write_bytes(b"\xef\xbb\xbf" + lines.encode())
    format_data(data, out, feats_type)
    index = read_scp(out / ("wav.scp" if feats_type == "raw" else "feats.scp"))
    assert sorted(index) == sorted(keys) and len(set(index.values())) == len(keys)
    if feats_type == "raw":
        for path in index.values():
            assert soundfile.info(path).frames == 1600


def test_one_channel_is_dumped_on_wish(make_data_dir, tmp_path, noise):
    data = make_data_dir({"a": 0.1})
    left, right = noise(0.1, seed=5), noise(0.1, seed=6)
    soundfile.write(data / "a.wav", np.stack([left, right], 1), 16000)
    with pytest.raises(ValueError, match="has 2 channels, .* --channel 0"):
        format_data(data, tmp_path / "dump")
    for channel, expected in ((0, left), (1, right)):
        format_data(data, tmp_path / "dump", channel=channel)
        path = read_scp(tmp_path / "dump/wav.scp")["a"]
        assert (soundfile.read(path, dtype="int16")[0] == expected).all()


def test_commands_in_wav_scp_run_only_on_wish(make_data_dir, tmp_path, capsys):
    data = make_data_dir({"a": 0.1})
    (data / "wav.scp").write_text(f"a cat {data / 'a.wav'} |\n")
    arguments = [
        "format_data",
        "--data_dir",
        f"{data}",
        "--out_dir",
        f"{tmp_path / 'dump'}",
    ]
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 1
    assert "--allow_pipes true" in capsys.readouterr().err
    cli.main(arguments + ["--allow_pipes", "true"])
    assert read_scp(tmp_path / "dump/utt2num_samples") == {"a": "1600"}


@pytest.mark.parametrize(
    "options", [dict(nj=0), dict(feats_type="mfcc"), dict(audio_format="mp3")]
)
def test_bad_options_are_an_error(make_data_dir, tmp_path, options):
    with pytest.raises(ValueError, match="expected"):
        format_data(make_data_dir({"a": 0.1}), tmp_path / "dump", **options)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KiB; it needs the right to mount one."""
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs needs root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def assert_full_disk_is_explained(data, out, feats_type, name, nj=1):
    with pytest.raises(OSError, match="No space left on device") as error:
        format_data(data, out, feats_type, nj=nj)
    assert error.value.errno == errno.ENOSPC
    assert name in str(error.value) and f" in {out}" in str(error.value)
    assert not list(out.rglob("*.tmp*"))
    assert not (out / "text").exists()


@pytest.mark.parametrize("nj", [1, 2])
def test_a_full_disk_leaves_whole_files_only(make_data_dir, small_disk, nj):
    data = make_data_dir({f"u{number}": 0.5 for number in range(12)})
    # With two processes the disk may be full when the journal is written.
    name = ".flac" if nj == 1 else "while writing "
    assert_full_disk_is_explained(data, small_disk / "dump", "raw", name, nj)
    for file in (small_disk / "dump/data").rglob("*.flac"):
        assert len(soundfile.read(file)[0]) == 8000


def test_a_full_disk_leaves_no_half_ark(make_data_dir, small_disk):
    data = make_data_dir({"a": 3.0})
    assert_full_disk_is_explained(data, small_disk / "dump", "fbank", "feats.1.ark")
    assert not list((small_disk / "dump").rglob("*.ark"))


def test_a_full_disk_is_explained_without_one(make_data_dir, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    data = make_data_dir({"a": 0.1})
    monkeypatch.setattr(dump.Path, "write_bytes", full)
    assert_full_disk_is_explained(data, tmp_path / "dump", "raw", "a.flac")
