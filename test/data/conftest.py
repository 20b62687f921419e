"""Small data directories with real files, shared by the tests of espnet_dus.data."""

import numpy as np
import pytest
import soundfile


@pytest.fixture(scope="session")
def noise():
    """Return a function that makes white noise in 16-bit samples."""

    def make(seconds, fs=16000, seed=0):
        generator = np.random.default_rng(seed)
        return generator.integers(-8000, 8000, round(seconds * fs)).astype(np.int16)

    return make


@pytest.fixture
def make_data_dir(tmp_path, noise):
    """Return a function that makes tmp_path/data/<name> from durations by utterance."""

    def make(durations, name="train", fs=16000, suffix="wav"):
        path = tmp_path / "data" / name
        path.mkdir(parents=True)
        tables = {"wav.scp": "", "text": "", "utt2spk": ""}
        for seed, (utterance, seconds) in enumerate(durations.items()):
            wav = path / f"{utterance}.{suffix}"
            soundfile.write(wav, noise(seconds, fs, seed), fs)
            tables["wav.scp"] += f"{utterance} {wav}\n"
            tables["text"] += f"{utterance} WORDS OF {utterance}\n"
            tables["utt2spk"] += f"{utterance} spk\n"
        for table, lines in tables.items():
            (path / table).write_text(lines)
        return path

    return make
