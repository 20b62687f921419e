import os
import subprocess

import numpy as np
import pytest
import soundfile

from espnet_dus.data.audio import AudioError, open_audio, read_audio
from espnet_dus.data.data_dir import Utterance, parse_channel
from espnet_dus.data.waveform import to_pcm16


@pytest.fixture
def wav(tmp_path, noise):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(1.0), 16000)
    return path


def nist(samples, fs=16000):
    header = (
        f"NIST_1A\n   1024\nsample_count -i {len(samples)}\nsample_rate -i {fs}\n"
        "sample_n_bytes -i 2\nsample_byte_format -s2 01\nchannel_count -i 1\n"
        "sample_coding -s3 pcm\nend_head\n"
    )
    return header.encode().ljust(1024) + samples.astype("<i2").tobytes()


def tone(frequency, seconds, fs):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * fs)) / fs)


def frequency_of(samples, fs):
    return np.argmax(np.abs(np.fft.rfft(samples))) * fs / len(samples)


def assert_fault(path, message, **options):
    with pytest.raises(AudioError, match=message) as error:
        read_audio(Utterance("utt1", str(path), **options), 16000)
    assert str(error.value).startswith(f"utterance utt1: {path}: ")


@pytest.mark.parametrize("suffix", ["wav", "flac", "sph"])
def test_16_bit_audio_is_read_exactly(tmp_path, suffix, noise):
    path, samples = tmp_path / f"a.{suffix}", noise(0.3)
    if suffix == "sph":
        path.write_bytes(nist(samples))
    else:
        soundfile.write(path, samples, 16000)
    read = read_audio(Utterance("a", str(path)), 16000)
    assert read.dtype == np.float32
    assert (to_pcm16(read) == samples).all()


def test_a_segment_is_cut_at_its_times(wav):
    whole = read_audio(Utterance("a", str(wav)), 16000)
    part = read_audio(Utterance("a", str(wav), 0.25, 0.75), 16000)
    rest = read_audio(Utterance("a", str(wav), 0.25), 16000)
    assert (part == whole[4000:12000]).all()
    assert (rest == whole[4000:]).all()


def test_a_segment_may_end_a_little_after_the_recording(wav):
    assert len(read_audio(Utterance("a", str(wav), 0.5, 1.4), 16000)) == 8000
    assert_fault(wav, r"lasts 1.00 s, .* from 0.5 to 1.6 s", start=0.5, end=1.6)
    assert_fault(wav, r"does not hold the segment", start=1.0, end=1.2)


def test_another_rate_is_resampled_and_the_pitch_stays(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1000, 1.0, 44100), 44100)
    samples = read_audio(Utterance("a", str(path)), 16000)
    assert len(samples) == 16000
    assert frequency_of(samples, 16000) == pytest.approx(1000, abs=2)


@pytest.mark.parametrize("fs", [16000, 8000])
def test_speed_changes_length_and_pitch_together(tmp_path, fs):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1000, 1.1, fs), fs)
    samples = read_audio(Utterance("a", str(path), speed=1.1), 16000)
    assert len(samples) == 16000
    assert frequency_of(samples, 16000) == pytest.approx(1100, abs=2)


def test_a_missing_file_is_named(tmp_path):
    assert_fault(tmp_path / "none.wav", "No such file")
    assert_fault(tmp_path, "Is a directory")


def test_an_empty_file_and_a_file_without_samples(tmp_path, wav, noise):
    (tmp_path / "zero.wav").touch()
    assert_fault(tmp_path / "zero.wav", r"is empty \(0 bytes\)")
    soundfile.write(wav, noise(0), 16000)
    assert_fault(wav, "has no samples")


def test_a_file_that_is_not_audio(tmp_path):
    (tmp_path / "a.wav").write_text("<html>404</html>" * 100)
    assert_fault(tmp_path / "a.wav", "is not audio that can be read")


@pytest.mark.parametrize("suffix", ["wav", "flac", "sph"])
@pytest.mark.parametrize("end", [-1.0, 0.2])
def test_a_truncated_file_is_never_half_an_utterance(tmp_path, suffix, end, noise):
    path = tmp_path / f"a.{suffix}"
    if suffix == "sph":
        path.write_bytes(nist(noise(1.0)))
    else:
        soundfile.write(path, noise(1.0), 16000)
    os.truncate(path, path.stat().st_size // 2)
    if suffix == "flac" and end != -1:
        # A decoder reads as far as it is asked to: the segment is there.
        segment = read_audio(Utterance("a", str(path), 0.0, end), 16000)
        assert (to_pcm16(segment) == noise(1.0)[:3200]).all()
    else:
        assert_fault(path, "truncated", end=end)


def test_of_several_channels_one_is_chosen_or_their_mean(wav, noise):
    left, right = noise(0.1, seed=1), noise(0.1, seed=2)
    soundfile.write(wav, np.stack([left, right], 1), 16000)
    utterance = Utterance("a", str(wav))
    assert (to_pcm16(read_audio(utterance, 16000, channel=0)) == left).all()
    assert (to_pcm16(read_audio(utterance, 16000, channel=1)) == right).all()
    mean = (left / 32768 + right / 32768) / 2
    np.testing.assert_allclose(
        read_audio(utterance, 16000, channel="mean"), mean, atol=1e-6
    )
    assert_fault(wav, r"has 2 channels, .* --channel 0 \(to 1\), or --channel mean")
    with pytest.raises(AudioError, match="has no channel 2; its 2 channel"):
        read_audio(utterance, 16000, channel=2)


def test_channels_in_opposite_phase_do_not_cancel(wav, noise, caplog):
    left = noise(0.1)
    soundfile.write(wav, np.stack([left // 2, -left], 1), 16000)
    mixed = read_audio(Utterance("a", str(wav)), 16000, channel="mean")
    assert (to_pcm16(mixed) == (left // 2 - left) / 2).mean() > 0.4  # not cancelled
    assert not caplog.records
    soundfile.write(wav, np.stack([left, -left], 1), 16000)
    for _ in range(2):
        mixed = read_audio(Utterance("a", str(wav)), 16000, channel="mean")
        assert (to_pcm16(mixed) == left).all()
    (record,) = caplog.records  # said once
    assert f"{wav}: the channels are in opposite phase" in record.message


@pytest.mark.parametrize("text, channel", [("0", 0), ("3", 3), ("mean", "mean")])
def test_a_channel_is_an_index_or_mean(text, channel):
    assert parse_channel(text) == channel


@pytest.mark.parametrize("text", ["left", "-1", "0.5", ""])
def test_a_bad_channel_is_an_error_that_names_it(text):
    with pytest.raises(ValueError, match=f"or mean, got '{text}'"):
        parse_channel(text)


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW", "GSM610", "PCM_16"])
def test_telephone_audio_is_read_at_the_models_rate(tmp_path, subtype):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(400, 1.0, 8000), 8000, subtype=subtype)
    samples = read_audio(Utterance("a", str(path)), 16000)
    assert 16000 <= len(samples) <= 16640  # GSM fills its last block up
    assert frequency_of(samples, 16000) == pytest.approx(400, abs=20)
    part = read_audio(Utterance("a", str(path), 0.5, 0.75), 16000)
    assert len(part) == 4000
    # the edges of a resampled part differ
    np.testing.assert_allclose(part[200:3800], samples[8200:11800], atol=2e-2)


def test_a_recording_is_read_in_blocks_as_in_one(tmp_path, noise):
    for suffix in ("flac", "ogg", "mp3", "wav"):
        path = tmp_path / f"a.{suffix}"
        soundfile.write(path, noise(1.0), 16000)
        with open_audio(path) as recording:
            blocks = list(recording.blocks(0.3))
        assert [len(block) for block in blocks] == [4800, 4800, 4800, 1600]
        whole = read_audio(Utterance("a", str(path)), 16000)
        np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-4)


def test_a_fault_within_a_long_recording_names_the_file(tmp_path, noise):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(1.0), 16000)
    os.truncate(path, path.stat().st_size * 3 // 4)
    with pytest.raises(AudioError, match=f"{path}: is (damaged or )?truncated"):
        with open_audio(path) as recording:
            list(recording.blocks(0.25))


def test_a_named_pipe_is_read(tmp_path, wav, noise):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cp", wav, tmp_path / "pipe"]):
        samples = read_audio(Utterance("a", str(tmp_path / "pipe")), 16000)
    assert (to_pcm16(samples) == noise(1.0)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(wav, value):
    samples = np.zeros(1000, np.float32)
    samples[500] = value
    soundfile.write(wav, samples, 16000, subtype="FLOAT")
    assert_fault(wav, "NaN or infinite")


def test_a_command_is_not_run_unless_allowed(tmp_path, wav, noise):
    marker = tmp_path / "ran"
    command = f"touch {marker}; cat {wav} |"
    with pytest.raises(AudioError, match="Commands in data files are not run"):
        read_audio(Utterance("a", command), 16000)
    assert not marker.exists()
    samples = read_audio(Utterance("a", command), 16000, allow_pipes=True)
    assert (to_pcm16(samples) == noise(1.0)).all()
    with pytest.raises(AudioError, match="utterance a: .* exit code 3: oh dear"):
        read_audio(
            Utterance("a", "echo oh dear >&2; exit 3 |"), 16000, allow_pipes=True
        )
    # half a recording, of which only the first command knows
    command = f"(head -c 9000 {wav}; exit 5) | cat |"
    with pytest.raises(AudioError, match="exit code 5"):
        read_audio(Utterance("a", command), 16000, allow_pipes=True)
