"""Cut, unclosed, joined and streamed files: read whole or refused, in every format."""

import io
import os
import struct

import numpy as np
import pytest
import soundfile

from espnet_dus.data import audio
from espnet_dus.data.audio import AudioError, read_audio
from espnet_dus.data.containers import FORMATS
from espnet_dus.data.data_dir import Utterance
from espnet_dus.data.waveform import to_pcm16

LENGTH = 20011  # an odd number
CONTENTS = [(name, None) for name in sorted(FORMATS)]
CONTENTS += [("WAV", "ULAW"), ("WAV", "GSM610"), ("WAV", "IMA_ADPCM"), ("WAV", "FLOAT")]
CONTENTS += [("AU", "ALAW"), ("NIST", "ULAW"), ("CAF", "ALAC_16"), ("OGG", "OPUS")]
CONTENTS += [("AIFF", "PCM_24"), ("FLAC", "PCM_24"), ("RF64", "PCM_U8")]
LOSSY = ("OGG", "MP3")


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(3).integers(-9000, 9000, LENGTH).astype(np.int16)


def encode(samples, name="WAV", subtype=None, fs=16000):
    file = io.BytesIO()
    soundfile.write(file, samples, fs, format=name, subtype=subtype)
    return bytearray(file.getvalue())


@pytest.fixture
def read(tmp_path):
    """Read the samples of a file's content, at the file's own rate."""

    def run(content, **options):
        path = tmp_path / "audio"
        path.write_bytes(content)
        os.utime(path, ns=(run.calls, run.calls))  # as one written later
        run.calls += 1
        fs = soundfile.info(path).samplerate if "fs" not in options else options["fs"]
        return read_audio(Utterance("u1", str(path)), fs)

    run.calls = 1
    return run


def assert_refused(read, content, message="."):
    with pytest.raises(AudioError, match=message) as error:
        read(content, fs=16000)
    assert str(error.value).startswith("utterance u1: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, subtype", CONTENTS)
def test_a_whole_file_is_read_whole(read, samples, name, subtype):
    content = encode(samples, name, subtype)
    found = read(content)
    # ADPCM and GSM have blocks, the last of which is filled up
    assert 0 <= len(found) - LENGTH < 1100
    if name not in LOSSY and subtype is None:
        assert (to_pcm16(found) == samples).all()


@pytest.mark.parametrize("name, subtype", CONTENTS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.97])
def test_a_cut_file_is_refused(read, samples, name, subtype, share):
    content = encode(samples, name, subtype)
    assert_refused(read, content[: int(len(content) * share)])


@pytest.mark.parametrize("name, subtype", CONTENTS)
def test_a_file_that_lacks_its_last_bytes_is_refused(read, samples, name, subtype):
    content = encode(samples, name, subtype)
    if name == "CAF" and subtype == "ALAC_16":
        return  # what it ends with is a table, no sound
    assert_refused(read, content[:-5])


@pytest.mark.parametrize("name, subtype", CONTENTS)
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_joined_files_are_refused(read, samples, name, subtype, share):
    content = encode(samples, name, subtype)
    second = encode(samples[::-1], name, subtype)
    assert_refused(read, content + second[: int(share * len(second))])


def unclosed(name, samples, size):
    """Return a file whose writer left the length of its samples at `size`."""
    content = encode(samples, name)
    if name == "RF64":
        at = content.index(b"ds64") + 8
        content[at : at + 24] = struct.pack("<QQQ", size, size, size)
    elif name == "AU":
        content[8:12] = struct.pack(">I", size)
    else:
        form = {"AIFF": ">I", "CAF": ">Q", "W64": "<Q"}.get(name, "<I")
        width = struct.calcsize(form)
        at = content.index(b"SSND" if name == "AIFF" else b"data")
        at += 16 if name == "W64" else 4
        content[at : at + width] = struct.pack(form, size)
    if name in ("WAV", "WAVEX", "AIFF"):
        content[4:8] = struct.pack(">I" if name == "AIFF" else "<I", size)
    return content


@pytest.mark.parametrize(
    "name, size",
    [
        ("WAV", 0),
        ("WAV", 0xFFFFFFFF),
        ("WAV", 0x7FFFF000),  # sox
        ("WAVEX", 0),
        ("RF64", 0),
        ("AIFF", 0),
        ("AIFF", 0x7FFFFFFF),
        ("AU", 0),
        ("AU", 0xFFFFFFFF),
        ("CAF", 0),
        ("CAF", 2**64 - 1),
        ("W64", 0),
        ("W64", 24),
    ],
)
def test_a_length_left_open_is_filled_in(read, samples, name, size):
    content = unclosed(name, samples, size)
    found = to_pcm16(read(content, fs=16000))
    assert (found == samples).all()
    assert_refused(read, content + unclosed(name, samples, size), "several recordings")


def test_filling_in_does_not_change_the_file(read, samples, tmp_path):
    content = unclosed("WAV", samples, 0)
    read(content)
    assert (tmp_path / "audio").read_bytes() == content


def test_a_length_that_was_written_once_and_not_again_is_refused(read, samples):
    assert_refused(read, unclosed("WAV", samples, 4000), "36022 bytes that its header")


def test_what_may_follow_the_samples_is_no_fault(read, samples):
    content = encode(samples) + b"\0"  # of an odd length: padded
    comment = b"LIST\x1a\0\0\0INFOISFT\x0d\0\0\0Lavf60.16.100\0"
    for rest in (comment, bytes(100), b"TAG" + bytes(125), comment + comment):
        assert len(read(content + rest)) == LENGTH


def streamed_flac(samples, subtype=None):
    content = encode(samples, "FLAC", subtype)
    content[21] &= 0xF0  # the 36 bits of the number of samples
    content[22:26] = bytes(4)
    return content


@pytest.mark.parametrize("length", [1, 300, 4096, 4097, LENGTH])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_a_streamed_flac_is_read_whole(read, samples, length, subtype):
    # without a length in its header, as an encoder writes to a pipe
    found = read(streamed_flac(samples[:length], subtype), fs=16000)
    assert (to_pcm16(found) == samples[:length]).all()


def test_a_streamed_flac_is_checked_once_for_all_of_its_segments(
    samples, tmp_path, monkeypatch
):
    path, checked = tmp_path / "once", []
    path.write_bytes(streamed_flac(samples))
    check = audio.patches
    monkeypatch.setattr(audio, "patches", lambda data: checked.append(1) or check(data))
    for start in (0, 0.5):
        segment = Utterance("u1", str(path), start, start + 0.5)
        found = to_pcm16(read_audio(segment, 16000))
        assert (found == samples[int(start * 16000) :][:8000]).all()
    assert len(checked) == 1


def test_a_long_streamed_flac_is_read_whole(read, noise):
    long = noise(60.0)[: 150 * 4096 + 7]  # frame numbers of two bytes
    assert (to_pcm16(read(streamed_flac(long), fs=16000)) == long).all()


def test_a_streamed_flac_that_was_cut_or_joined_is_refused(read, samples):
    content = streamed_flac(samples)
    for cut in (1, 100, len(content) // 2):
        assert_refused(read, content[:-cut], "is truncated or damaged")
    assert_refused(read, content + content, "several recordings")


def test_an_ogg_without_its_middle_is_refused(read, samples):
    content = encode(np.tile(samples, 20), "OGG")
    first = content.index(b"OggS", len(content) // 3)
    second = content.index(b"OggS", first + 1)
    assert_refused(read, content[:first] + content[second:], "pages before its page")


def test_mpeg_with_tags_is_read_and_with_damage_refused(read, samples):
    content = encode(samples, "MP3")
    id3v2 = b"ID3\x04\0\0\0\0\x01\x00" + bytes(128)
    for tagged in (id3v2 + content, content + b"TAG" + bytes(125)):
        assert len(read(tagged, fs=16000)) == LENGTH
    assert_refused(read, id3v2 + content + id3v2 + content, "several recordings")
    middle = len(content) // 2
    damaged = content[:middle] + bytes(2000) + content[middle + 2000 :]
    assert_refused(read, damaged, "truncated|damaged")


@pytest.mark.parametrize("name", ["PVF", "VOC", "IRCAM", "MAT5"])
def test_a_format_in_which_a_cut_does_not_show_is_refused(read, samples, name):
    message = f"in the format {name}, in which a cut file looks like a whole one"
    assert_refused(read, encode(samples, name), message)


@pytest.mark.parametrize("name, subtype", CONTENTS)
def test_a_file_that_was_cut_within_its_header_is_refused(read, samples, name, subtype):
    content = encode(samples, name, subtype)
    for size in range(1, 60):
        assert_refused(read, content[:size])
