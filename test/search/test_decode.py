"""Stage 12: a data set into ESPnet's result files."""

import logging

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet_dus.io import read_scp
from espnet_dus.search.decode import decode
from espnet_dus.search.speech2text import Speech2Text

FIELDS = ("text", "token", "token_int", "score")


@pytest.fixture(scope="module")
def speech2text(tiny_model, tiny_options, randomise, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exp")
    (directory / "config.yaml").write_text(yaml.safe_dump(vars(tiny_options())))
    model = tiny_model()
    randomise(model.lm, seed=3)
    torch.save(model.state_dict(), directory / "valid.acc.ave.pth")
    return Speech2Text(
        directory / "config.yaml",
        directory / "valid.acc.ave.pth",
        search={"no_speech": 0.0},  # the utterances are noise
    )


@pytest.fixture
def corpus(tmp_path, noises):
    """Five utterances; of one file nothing can be read; some are too short."""
    speeches = dict(zip("abcde", noises(0.9, 0.4, 1.3, 0.7, 0.5)))
    speeches["few_frames"] = speeches["a"][:1000]
    speeches["no_frame"] = speeches["a"][:50]
    speeches["empty"] = speeches["a"][:0]
    speeches["nan"] = speeches["a"] * np.float32("nan")
    table = ""
    for key, speech in speeches.items():
        soundfile.write(tmp_path / f"{key}.wav", speech, 16000, subtype="FLOAT")
        table += f"{key} {tmp_path / key}.wav\n"
    (tmp_path / "broken.wav").write_bytes(b"RIFF, but no more")
    table += f"broken {tmp_path}/broken.wav\nmissing {tmp_path}/missing.wav\n"
    (tmp_path / "wav.scp").write_text(table)
    return tmp_path / "wav.scp"


GOOD = list("abcde")
BAD = ["few_frames", "no_frame", "empty", "nan", "broken", "missing"]


def results(speech2text, corpus, batch_size, key_file=None):
    out_dir = corpus.parent / f"out_{batch_size}"
    decode(
        speech2text,
        [(str(corpus), "speech", "sound")],
        key_file and str(key_file),
        str(out_dir),
        batch_size,
    )
    return {field: read_scp(out_dir / "1best_recog" / field) for field in FIELDS}


def test_every_utterance_gets_a_result_and_the_good_ones_their_own(
    speech2text, corpus, caplog
):
    caplog.set_level(logging.ERROR)
    found = results(speech2text, corpus, batch_size=4)
    for field in FIELDS:
        assert list(found[field]) == sorted(GOOD + BAD)
    for key in BAD:
        assert (found["text"][key], found["token"][key]) == ("", "")
        assert sum(f"utterance {key} is not" in m for m in caplog.messages) == 1
    for key in GOOD:
        speech, _ = soundfile.read(corpus.parent / f"{key}.wav", dtype="float32")
        (expected,) = speech2text(speech)
        assert found["token_int"][key] == " ".join(map(str, expected.token_int))
        assert found["text"][key] == " ".join(expected.text.split("\n")).strip()
        assert float(found["score"][key]) == pytest.approx(expected.score, abs=1e-3)


@pytest.mark.parametrize("batch_size", [0.1, 3, 99])
def test_the_batch_size_does_not_matter(speech2text, corpus, batch_size):
    expected = results(speech2text, corpus, batch_size=2)
    found = results(speech2text, corpus, batch_size)
    for field in ("text", "token", "token_int"):
        assert found[field] == expected[field]


def test_only_the_utterances_of_the_key_file_are_decoded(speech2text, corpus):
    keys = corpus.with_name("keys.scp")
    keys.write_text("d x\nb x\n")
    assert list(results(speech2text, corpus, 8, keys)["text"]) == ["b", "d"]


def test_no_utterance_to_decode_is_an_error(speech2text, corpus):
    keys = corpus.with_name("keys.scp")
    keys.write_text("")
    with pytest.raises(ValueError, match="keys.scp: no utterance to decode"):
        results(speech2text, corpus, 8, keys)


def test_one_waveform_and_a_list_of_them_are_transcribed(speech2text, noises):
    one, other = noises(0.9, 0.4)
    assert speech2text(one)[0].token_int == speech2text([one])[0].token_int
    pair = speech2text([torch.from_numpy(one), other.astype(np.float64)])
    assert [h.token_int for h in pair] == [
        speech2text(speech)[0].token_int for speech in (one, other)
    ]


def test_the_time_of_all_audio_is_logged(speech2text, corpus, caplog):
    caplog.set_level(logging.INFO)
    results(speech2text, corpus, batch_size=4)
    found = [m for m in caplog.messages if "s of audio in" in m]
    # the good ones, 1000 samples and 50
    audio = 0.9 + 0.4 + 1.3 + 0.7 + 0.5 + 1050 / 16000
    assert len(found) == 1
    assert found[0].startswith(f"decoded 11 utterances: {audio:.2f} s of audio in ")
