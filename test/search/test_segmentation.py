"""Long recordings in segments: real speech of AN4 between silences."""

import sys

import numpy as np
import pytest
import soundfile
import soxr
import torch

from espnet_dus.data.audio import AudioError
from espnet_dus.data.corpora.an4 import find_corpus
from espnet_dus.search.segmentation import segments

RATE = 16000


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Utterances of two seconds and more from the espnet package."""
    root = find_corpus("espnet", tmp_path_factory.mktemp("an4"))
    read = [soundfile.read(f, dtype="float32")[0] for f in sorted(root.rglob("*.sph"))]
    return [samples for samples in read if len(samples) > 2 * RATE]


def silence(seconds):
    noise = np.random.default_rng(0).standard_normal(round(seconds * RATE))
    return (1e-4 * noise).astype(np.float32)


@pytest.fixture
def write(tmp_path):
    """Return a function that joins pieces to a file; gives its path and their spans."""

    def write(*pieces, rate=RATE, channels=1, name="long.wav"):
        ends = np.cumsum([0] + [len(piece) for piece in pieces]) / RATE
        samples = soxr.resample(np.concatenate(pieces), RATE, rate)
        samples = np.repeat(samples[:, None], channels, axis=1)
        soundfile.write(tmp_path / name, samples, rate)
        return tmp_path / name, list(zip(ends, ends[1:]))

    return write


def check(found, path, fs=RATE, max_seconds=20.0):
    """Check what holds for all segments: order, length and samples."""
    whole = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(1)
    rate = soundfile.info(path).samplerate
    for one, other in zip(found, found[1:]):
        assert one.end <= other.start
    for start, end, samples in found:
        assert 0 <= start < end <= len(whole) / rate
        assert end - start <= max_seconds + 1e-6
        assert samples.dtype == np.float32
        assert len(samples) == pytest.approx((end - start) * fs, abs=2)
        if rate == fs:
            first = round(start * rate)
            assert np.array_equal(samples, whole[first : first + len(samples)])


def test_segments_cover_the_speech_and_leave_out_the_silence(write, speech):
    a, b = speech[:2]
    path, spans = write(silence(3), a, silence(4), b, silence(3))
    found = list(segments(path, RATE))
    check(found, path)
    assert len(found) == 2
    for segment, (start, end) in zip(found, (spans[1], spans[3])):
        # AN4 has up to half a second of silence around the speech itself
        assert start - 0.2 < segment.start < start + 0.7
        assert end - 0.7 < segment.end < end + 0.2


def test_a_recording_of_one_utterance_keeps_its_silence(write, speech):
    path, spans = write(silence(0.8), speech[0], silence(2.0))
    (whole,) = segments(path, RATE)
    check([whole], path)
    assert (whole.start, whole.end) == (0.0, spans[-1][1])
    (trimmed,) = segments(path, RATE, max_seconds=spans[-1][1] - 0.5)
    assert trimmed.start > 0.6 and trimmed.end < spans[-1][1] - 0.8


def test_utterances_near_each_other_are_one_segment_while_it_fits(write, speech):
    path, spans = write(*(piece for s in speech[:3] for piece in (s, silence(0.2))))
    (together,) = segments(path, RATE)
    check([together], path)
    assert together.end - together.start > 0.8 * spans[-1][1]
    apart = list(segments(path, RATE, max_seconds=4.0))
    check(apart, path, max_seconds=4.0)
    assert len(apart) >= 3
    covered = sum(segment.end - segment.start for segment in apart)
    assert covered > 0.8 * (together.end - together.start)


def test_speech_without_a_pause_is_cut_and_nothing_is_lost(write, speech):
    loud = [s[np.abs(s) > 0.01] for s in speech]  # no pause is left in them
    path, spans = write(*loud, *loud)
    seconds = spans[-1][1]
    found = list(segments(path, RATE, max_seconds=2.0))
    check(found, path, max_seconds=2.0)
    assert len(found) >= seconds / 2
    cuts = [one for one, other in zip(found, found[1:]) if one.end == other.start]
    assert len(cuts) >= len(found) // 2


@pytest.mark.parametrize("kind", ["digital silence", "quiet noise"])
def test_without_speech_there_is_no_segment(write, kind):
    pieces = {
        "digital silence": np.zeros(5 * RATE, np.float32),
        "quiet noise": silence(35),  # more than a block
    }
    path, _ = write(pieces[kind])
    assert list(segments(path, RATE)) == []


def test_other_rates_and_channels_and_formats_give_the_same_segments(write, speech):
    pieces = (silence(1), speech[0], silence(2), speech[1])
    path, _ = write(*pieces)
    expected = list(segments(path, RATE))
    assert len(expected) == 2
    other, _ = write(*pieces, rate=44100, channels=2, name="stereo.flac")
    found = list(segments(other, 8000))
    check(found, other, fs=8000)
    for one, two in zip(expected, found, strict=True):
        assert one.start == pytest.approx(two.start, abs=0.1)
        assert one.end == pytest.approx(two.end, abs=0.1)


def test_one_channel_of_several_is_cut(tmp_path, speech):
    both = np.stack([silence(len(speech[0]) / RATE), speech[0]], 1)
    soundfile.write(tmp_path / "call.wav", both, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", speech[0], RATE, subtype="FLOAT")
    assert list(segments(tmp_path / "call.wav", RATE, channel=0)) == []
    (found,) = segments(tmp_path / "call.wav", RATE, channel=1)
    (expected,) = segments(tmp_path / "mono.wav", RATE)
    assert found[:2] == expected[:2]
    assert np.array_equal(found.samples, expected.samples)


def test_a_long_recording_is_read_by_block_and_by_segment(write, speech, monkeypatch):
    minute = [piece for s in speech[:3] for piece in (s, silence(20 - len(s) / RATE))]
    path, _ = write(*minute, *minute)
    read = []
    whole = soundfile.SoundFile.read

    def count(file, frames=-1, *args, **kwargs):
        read.append(frames)
        return whole(file, frames, *args, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", count)
    assert len(list(segments(path, RATE))) == 6
    assert max(read) <= 30 * RATE and len(read) == 4 + 6


def test_the_threads_of_torch_are_left_alone(write, speech, monkeypatch):
    for name in ("silero_vad", "silero_vad.model"):  # imported again
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(segments(write(speech[0])[0], RATE))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_bad_files_and_options_are_errors(tmp_path, write, speech):
    path, _ = write(speech[0])
    with pytest.raises(ValueError, match="max_seconds: expected at least 1.5, got 0.5"):
        next(segments(path, RATE, max_seconds=0.5))
    soundfile.write(tmp_path / "empty.wav", speech[0][:0], RATE)
    with pytest.raises(AudioError, match="empty.wav: has no samples"):
        next(segments(tmp_path / "empty.wav", RATE))
    with pytest.raises(AudioError, match="missing.wav: No such file"):
        next(segments(tmp_path / "missing.wav", RATE))
    broken = speech[0].copy()
    broken[100] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match="nan.wav: has samples that are NaN"):
        next(segments(tmp_path / "nan.wav", RATE))
