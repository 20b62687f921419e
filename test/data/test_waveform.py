"""Samples of any library, type, rate and number of channels become one waveform."""

import numpy as np
import pytest
import torch

from espnet_dus.data.containers import AudioError
from espnet_dus.data.waveform import as_waveform, parse_fs, to_pcm16

WAVE = np.linspace(-0.5, 0.5, 400, dtype=np.float32)


@pytest.mark.parametrize(
    "array",
    [
        WAVE,
        WAVE.astype(np.float64),
        np.repeat(WAVE, 2)[::2],
        WAVE[::-1].copy()[::-1],
        WAVE.tolist(),
        torch.tensor(WAVE, requires_grad=True),
        torch.tensor(WAVE)[None],
        WAVE[:, None],
        np.stack([WAVE, WAVE]),
        np.stack([WAVE, WAVE], 1),
        np.stack([WAVE * 2, WAVE * 0], 1),
        np.stack([WAVE, -WAVE]),
        np.asfortranarray(np.stack([WAVE] * 6, 1)),
    ],
)
def test_an_array_of_any_library_is_the_same_waveform(array):
    waveform = as_waveform(array)
    assert waveform.dtype == np.float32 and waveform.shape == (400,)
    assert waveform.flags.c_contiguous and waveform.flags.writeable
    np.testing.assert_allclose(waveform, WAVE, atol=1e-7)


@pytest.mark.parametrize(
    "dtype, values",
    [
        (np.int16, [-32768, 0, 16384]),
        (np.int32, [-(2**31), 0, 2**30]),
        (np.uint8, [0, 128, 192]),
        (np.float16, [-1, 0, 0.5]),
    ],
)
def test_integers_are_scaled_as_in_wav_files(dtype, values):
    assert as_waveform(np.array(values, dtype)).tolist() == [-1.0, 0.0, 0.5]
    assert as_waveform(torch.tensor(np.array(values, dtype))).tolist() == [-1, 0, 0.5]


def test_bfloat16_is_read():
    assert as_waveform(torch.tensor([0.5, -0.25]).bfloat16()).tolist() == [0.5, -0.25]


def test_an_array_of_another_rate_is_resampled():
    def tone(fs):
        return 0.5 * np.sin(2 * np.pi * 1000 * np.arange(fs) / fs)

    waveform = as_waveform(tone(44100), rate=44100, fs=16000)
    assert len(waveform) == 16000
    middle = slice(1000, -1000)
    np.testing.assert_allclose(waveform[middle], tone(16000)[middle], atol=1e-3)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros(0), r"has no samples: its shape is \(0,\)"),
        (np.zeros((2, 0)), r"has no samples: its shape is \(2, 0\)"),
        ([], "has no samples"),
        (WAVE * np.nan, "NaN or infinite"),
        (np.array([0, np.inf]), "NaN or infinite"),
        (np.zeros((100, 80)), r"has the shape \(100, 80\); expected \(samples,\)"),
        (np.zeros((2, 2, 100)), r"has the shape \(2, 2, 100\)"),
        (np.float32(0.5), r"has the shape \(\)"),
        ([1, 2, 3], "of type int64; expected floating point"),
        (np.array([1 + 1j]), "of type complex128"),
        (["a", "b"], "of type <U1"),
        ([[0.1, 0.2], [0.1]], "are not an array"),
        (np.array([0, 20000.0]), "up to 20000, expected -1 to 1: divide"),
    ],
)
def test_an_array_that_is_not_a_waveform_is_one_clear_line(array, message):
    with pytest.raises(AudioError, match=message) as error:
        as_waveform(array)
    assert "\n" not in str(error.value)


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
