"""Cuts of any audio become shards of FLAC."""

import functools

import soundfile

from espnet_dus.data.shards.cuts import make_cut
from espnet_dus.data.shards.from_cuts import store_audio
from espnet_dus.data.shards.shar_writer import write_blocks


def test_cuts_of_another_rate_and_of_parts_of_a_file_become_flac(
    tmp_path, read_back, noise
):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(1.0, fs=8000), 8000)
    whole = make_cut("a", str(path), 8000, 8000, "WORDS", "spk")
    part = whole.truncate(offset=0.25, duration=0.5)
    part.id = "part"
    store = functools.partial(store_audio, fs=16000)
    write_blocks([[whole, part]], store, tmp_path / "out", "x")
    cuts = read_back(tmp_path / "out")
    assert cuts["a"].num_samples == 16000 and cuts["part"].num_samples == 8000
    assert cuts["part"].load_audio().shape == (1, 8000)
    assert cuts["part"].supervisions[0].text == "WORDS"
