"""Audio in Kaldi archives is read as from files."""

import kaldiio
import numpy as np
import pytest

from espnet_dus.data.audio import read_audio
from espnet_dus.data.audio_ark import split_location
from espnet_dus.data.containers import AudioError
from espnet_dus.data.data_dir import Utterance
from espnet_dus.data.waveform import to_pcm16
from espnet_dus.io import read_scp

FORMATS = {  # how Kaldi's wav-copy and ESPnet's stage 3 write
    "wav": {},
    "wav with a header": {"write_function": "soundfile"},
    "flac": {"write_function": "soundfile", "write_kwargs": {"format": "flac"}},
}


def write_ark(directory, audio, audio_format="wav"):
    """Return the path of an archive, and the entries of its wav.scp."""
    ark, scp = directory / "data.ark", directory / "wav.scp"
    kaldiio.save_ark(str(ark), audio, scp=str(scp), **FORMATS[audio_format])
    return ark, read_scp(scp)


@pytest.fixture
def audio(noise):
    return {"a": (16000, noise(0.5)), "b": (16000, noise(0.3)[::-1].copy())}


@pytest.mark.parametrize("audio_format", FORMATS)
def test_each_utterance_of_an_archive_is_read(tmp_path, audio, audio_format):
    _, entries = write_ark(tmp_path, audio, audio_format)
    for name, (rate, samples) in audio.items():
        read = to_pcm16(read_audio(Utterance(name, entries[name]), rate))
        np.testing.assert_array_equal(read, samples)


def test_a_segment_of_an_utterance_of_an_archive_is_read(tmp_path, audio):
    _, entries = write_ark(tmp_path, audio)
    read = read_audio(Utterance("a1", entries["a"], 0.1, 0.2), 16000)
    np.testing.assert_array_equal(to_pcm16(read), audio["a"][1][1600:3200])


def test_an_archive_that_ends_early_is_truncated(tmp_path, audio):
    path, entries = write_ark(tmp_path, audio)
    with path.open("r+b") as file:
        file.truncate(file.seek(0, 2) - 100)
    assert len(read_audio(Utterance("a", entries["a"]), 16000)) == 8000
    with pytest.raises(AudioError, match=r"utterance b: .*\.ark:\d+: is truncated"):
        read_audio(Utterance("b", entries["b"]), 16000)


@pytest.mark.parametrize("offset", [0, 5, 10**9])
def test_an_offset_without_audio_is_an_error(tmp_path, audio, offset):
    path, _ = write_ark(tmp_path, audio)
    with pytest.raises(AudioError, match="utterance a: .* holds no audio there"):
        read_audio(Utterance("a", f"{path}:{offset}"), 16000)


def test_an_archive_of_pickles_is_not_unpickled(tmp_path):
    (tmp_path / "evil.ark").write_bytes(b"a PKL\x80\x04N.")
    with pytest.raises(AudioError, match="holds no audio there"):
        read_audio(Utterance("a", f"{tmp_path}/evil.ark:2"), 16000)


def test_only_an_archive_has_an_offset():
    assert split_location("x/data.ark:17") == ("x/data.ark", 17)
    for wav in ("a.wav", "a:1.wav", "data.ark", "a.wav:3", "cat data.ark:1 |"):
        assert split_location(wav) == (wav, None)
