import os
import struct

import numpy as np
import pytest
import soundfile

from espnet_dus.data.audio import AudioError, parse_fs, read_audio, to_pcm16
from espnet_dus.data.data_dir import Utterance


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


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_of_unknown_length_is_not_taken_for_truncated(wav, length):
    content = bytearray(wav.read_bytes())
    content[40:44] = struct.pack("<I", length)
    wav.write_bytes(content)
    assert len(read_audio(Utterance("a", str(wav)), 16000)) == 16000


def test_a_flac_of_unknown_length_is_refused(tmp_path, noise):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(1.0), 16000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert_fault(path, "does not say how long it is")


def test_more_than_one_channel_is_refused(wav):
    soundfile.write(wav, np.zeros((100, 2)), 16000)
    assert_fault(wav, "has 2 channels; expected mono")


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


def test_loud_samples_are_clipped_not_wrapped():
    assert to_pcm16(np.array([1.2, -1.2, 0.0], np.float32)).tolist() == [
        32767,
        -32768,
        0,
    ]


@pytest.mark.parametrize("text, fs", [("16k", 16000), ("16000", 16000), ("8k", 8000)])
def test_a_rate_may_be_written_with_k(text, fs):
    assert parse_fs(text) == fs


@pytest.mark.parametrize("text", ["sixteen", "0", "-8k", ""])
def test_a_bad_rate_is_an_error_that_names_it(text):
    with pytest.raises(ValueError, match=f"16k or 16000, got '{text}'"):
        parse_fs(text)
