"""Waveforms to tokens with a tokenizer directory."""

import json
import shutil

import numpy as np
import pytest
import torch

from espnet_dus.data.speech_tokens.encoder_factory import TOKENIZERS
from espnet_dus.data.speech_tokens.info import CENTRES, INFO, TokenizerInfo
from espnet_dus.data.speech_tokens.tokenizer import (
    SpeechTokenizer,
    load_tokenizer,
    without_repeats,
)

RATE = 16000


def noise(seconds, seed=0):
    generator = np.random.default_rng(seed)
    return (0.1 * generator.standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.fixture
def directory(tmp_path, logmel):
    """A tokenizer whose 4 centres are frames of noise of different loudness."""
    loud = [logmel([noise(0.1) * factor])[0][0] for factor in (0.01, 0.1, 1, 5)]
    info = TokenizerInfo(
        "logmel", {**TOKENIZERS["logmel"], "sha256": ""}, 50.0, RATE, (4,)
    )
    info.write(tmp_path / "tokenizer", torch.stack(loud).numpy())
    return tmp_path / "tokenizer"


def test_a_token_is_the_nearest_centre(directory, logmel):
    tokenizer = load_tokenizer(directory)
    waveforms = [noise(0.2) * factor for factor in (0.01, 5, 0.1)]
    waveforms.append(np.concatenate([waveforms[0], waveforms[1]]))
    tokens = tokenizer(waveforms)
    assert [t.dtype for t in tokens] == [np.int32] * 4
    assert [t.shape for t in tokens] == [(10, 1), (10, 1), (10, 1), (20, 1)]
    assert [set(t.flat) for t in tokens[:3]] == [{0}, {3}, {1}]
    frames = logmel(waveforms[3:])[0].double()
    distances = torch.cdist(frames, tokenizer.centres_CD.double())
    np.testing.assert_array_equal(tokens[3][:, 0], distances.argmin(-1))


def test_tokens_do_not_depend_on_company_or_order(directory):
    tokenizer = load_tokenizer(directory)
    waveforms = [noise(0.3 * n, n) * 10 ** (n % 3 - 2) for n in range(1, 12)]
    together = tokenizer(waveforms)
    for waveform, tokens, other in zip(
        waveforms, together, tokenizer(waveforms[::-1])[::-1]
    ):
        np.testing.assert_array_equal(tokens, other)
        np.testing.assert_array_equal(tokens, tokenizer([waveform])[0])


def test_repeats_are_removed_and_their_number_is_kept(directory):
    info = TokenizerInfo.read(directory)
    whole = load_tokenizer(directory)
    TokenizerInfo(info.name, info.encoder, 50.0, RATE, (4,), remove_repeats=True).write(
        directory, whole.centres_CD.numpy()
    )
    short = load_tokenizer(directory)
    assert short.info.sha256 != info.sha256
    waveform = np.concatenate([noise(0.2) * factor for factor in (0.01, 5, 0.1)])
    (found,) = short.tokenize([waveform])
    tokens, lengths = found.tokens_FK, found.run_lengths_F
    assert len(found) == len(tokens) and found.num_frames == 30
    assert len(tokens) < 10 and not (np.diff(tokens[:, 0]) == 0).any()
    restored = np.repeat(tokens, lengths, axis=0)
    np.testing.assert_array_equal(restored, whole([waveform])[0])


def test_run_lengths_by_hand():
    tokens = np.array([0, 0, 3, 1, 1, 1, 0], dtype=np.int32)[:, None]
    kept = without_repeats(tokens)
    assert kept.tokens_FK[:, 0].tolist() == [0, 3, 1, 0]
    assert kept.run_lengths_F.tolist() == [2, 1, 3, 1]
    assert kept.run_lengths_F.dtype == np.int32
    assert len(kept) == 4 and kept.num_frames == 7


def test_streams_are_the_encoders_tokens(opuslm):
    info = TokenizerInfo("opuslm", {}, 50.0, RATE, opuslm.vocab_sizes)
    tokenizer = SpeechTokenizer(info, opuslm, None)
    waveforms = [noise(0.4), noise(0.9, 1)]
    for tokens, frames in zip(tokenizer(waveforms), opuslm(waveforms)):
        assert tokens.shape[1] == 3 and tokens.dtype == np.int32
        np.testing.assert_array_equal(tokens, frames.numpy())


def test_a_tampered_tokenizer_is_refused(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "other")
    path = tmp_path / "other" / CENTRES
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="has changed since it was made"):
        load_tokenizer(tmp_path / "other")
    with pytest.raises(ValueError, match="missing.*no such file"):
        load_tokenizer(tmp_path / "missing")


def test_an_encoder_with_other_weights_is_refused(directory, hubert_dir):
    spec = {"encoder": "frontend", "frontend": "huggingface"}
    spec["frontend_conf"] = {"model": str(hubert_dir)}
    info = TokenizerInfo("hubert", {**spec, "sha256": "0" * 64}, 50.0, RATE, (4,))
    info.write(directory, np.zeros((4, 16), np.float32))
    with pytest.raises(ValueError, match="hubert has other weights"):
        load_tokenizer(directory)
    assert json.loads((directory / INFO).read_text())["name"] == "hubert"
