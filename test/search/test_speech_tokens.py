"""A model of speech tokens takes audio, and hears what stage 3 has stored."""

import json
import shutil

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet_dus import Speech2Text
from espnet_dus.app import local_models
from espnet_dus.data.dataset import token_frames
from espnet_dus.data.format import format_data
from espnet_dus.data.speech_tokens.info import TokenizerInfo, read_tokenizer
from espnet_dus.data.speech_tokens.kmeans import make_tokenizer
from espnet_dus.data.speech_tokens.tokenizer import Tokens
from espnet_dus.search.decode import decode
from espnet_dus.search.segmentation import Segment
from espnet_dus.zoo.pack import pack

DURATIONS = {"a": 0.7, "b": 1.3, "c": 0.02}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A recipe's directory with data of three utterances, one at 44.1 kHz."""
    root = tmp_path_factory.mktemp("recipe")
    (root / "data").mkdir()
    tables = {"wav.scp": "", "text": "", "utt2spk": ""}
    for seed, (key, seconds) in enumerate(DURATIONS.items()):
        rate = 44100 if key == "b" else 16000
        noise = np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate))
        loud = noise * (np.arange(len(noise)) // 3000 % 3 + 0.1)
        soundfile.write(root / f"data/{key}.wav", loud, rate)
        tables["wav.scp"] += f"{key} {root}/data/{key}.wav\n"
        tables["text"] += f"{key} HELLO\n"
        tables["utt2spk"] += f"{key} spk\n"
    for name, lines in tables.items():
        (root / "data" / name).write_text(lines)
    return root


@pytest.fixture(scope="module", params=[False, True], ids=["all", "without repeats"])
def experiment(request, root, tiny_options, tiny_model, randomise, tmp_path_factory):
    """A trained model of tokens, its tokenizer and the tokens of stage 3."""
    directory = tmp_path_factory.mktemp("exp")
    tokenizer = directory / "tokenizer"
    make_tokenizer(root / "data", tokenizer, "logmel", 6, remove_repeats=request.param)
    format_data(root / "data", directory / "dump", "tokens", speech_tokenizer=tokenizer)
    options = dict(
        speech_input="tokens",
        speech_tokenizer=str(tokenizer),
        speech_embedder_conf={},
    )
    model = tiny_model(**options)
    randomise(model.lm, seed=3)
    randomise(model.ctc, seed=4, std=0.3)
    torch.save(model.state_dict(), directory / "valid.acc.ave.pth")
    config = vars(tiny_options(**options))
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return directory


def load(directory, **options):
    return Speech2Text(
        directory / "config.yaml", directory / "valid.acc.ave.pth", **options
    )


def stored(directory):
    """What stage 3 has written, as `Tokens`."""
    info = TokenizerInfo.read(directory / "tokenizer")
    vectors = kaldiio.load_scp(str(directory / "dump/feats.scp"))
    runs = {}
    if info.remove_repeats:
        runs = kaldiio.load_scp(str(directory / "dump/run_lengths.scp"))
    return {
        key: Tokens(token_frames(vectors[key], info), runs[key] if runs else None)
        for key in DURATIONS
    }


def in_parts(hypothesis):
    return hypothesis.text, hypothesis.token_int, hypothesis.word_times


def test_audio_gives_the_tokens_of_stage_3(experiment, root):
    speech2text = load(experiment)
    assert speech2text.fs == 16000
    for key, tokens in stored(experiment).items():
        samples, rate = soundfile.read(root / f"data/{key}.wav", dtype="float32")
        if rate != 16000:
            import soxr

            samples = soxr.resample(samples, rate, 16000)
        (found,) = speech2text.speech_tokenizer.tokenize([samples])
        np.testing.assert_array_equal(found.tokens_FK, tokens.tokens_FK)
        if tokens.run_lengths_F is not None:
            np.testing.assert_array_equal(found.run_lengths_F, tokens.run_lengths_F)


def test_audio_and_tokens_have_the_same_transcript_and_times(experiment, root):
    speech2text = load(experiment, search={"word_times": True, "no_speech": 0.0})
    tokens = stored(experiment)["a"]
    samples, _ = soundfile.read(root / "data/a.wav", dtype="float32")
    audio = in_parts(speech2text(samples)[0])
    assert audio == in_parts(speech2text(tokens)[0])
    assert audio[:2] == in_parts(speech2text([samples, tokens])[0])[:2]
    times = audio[2]
    assert times and all(0 <= t.start <= t.end <= 0.7 + 1e-6 for t in times)


def test_a_data_set_is_decoded_from_tokens_as_from_audio(experiment, root, tmp_path):
    speech2text = load(experiment, search={"no_speech": 0.0})
    for name, triple in (
        ("audio", (str(root / "data/wav.scp"), "speech", "sound")),
        ("tokens", (str(experiment / "dump/feats.scp"), "speech", "kaldi_ark")),
    ):
        decode(speech2text, [triple], None, str(tmp_path / name), batch_size=3)
    texts = [
        (tmp_path / name / "1best_recog/text").read_text()
        for name in ("audio", "tokens")
    ]
    assert texts[0] == texts[1] and len(texts[0].splitlines()) == 3
    costs = [
        json.loads((tmp_path / name / "decode.json").read_text())
        for name in ("audio", "tokens")
    ]
    seconds = [cost["audio_seconds"] for cost in costs]
    assert seconds == pytest.approx([2.02, 2.02], abs=0.02)


def test_a_model_that_names_its_tokenizer_by_a_relative_path_is_used_anywhere(
    experiment, root, tmp_path, monkeypatch
):
    config = yaml.safe_load((experiment / "config.yaml").read_text())
    config["speech_tokenizer"] = "tokenizer"
    moved = shutil.copytree(experiment, tmp_path / "moved")
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(root)
    samples, _ = soundfile.read(root / "data/a.wav", dtype="float32")
    search = {"no_speech": 0.0}
    found = local_models.load(str(moved), search=search)(samples)[0]
    assert found.text == load(experiment, search=search)(samples)[0].text != ""


def test_stored_tokens_are_decoded_without_the_encoder(
    experiment, root, tmp_path, monkeypatch
):
    def refuse(*_):
        raise RuntimeError("the encoder was loaded")

    monkeypatch.setattr("espnet_dus.search.speech2text.load_tokenizer", refuse)
    speech2text = load(experiment)
    triple = (str(experiment / "dump/feats.scp"), "speech", "kaldi_ark")
    decode(speech2text, [triple], None, str(tmp_path / "out"), batch_size=3)
    lines = (tmp_path / "out/1best_recog/text").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [*DURATIONS]
    samples, _ = soundfile.read(root / "data/a.wav", dtype="float32")
    with pytest.raises(RuntimeError, match="the encoder was loaded"):
        load(experiment, search={"no_speech": 0.0})(samples)


def test_tokens_of_another_tokenizer_are_refused(experiment, root, tmp_path):
    speech2text = load(experiment)
    other = experiment / "other"
    make_tokenizer(root / "data", other, "logmel", 5)
    format_data(root / "data", tmp_path / "dump", "tokens", speech_tokenizer=other)
    triple = (str(tmp_path / "dump/feats.scp"), "speech", "kaldi_ark")
    with pytest.raises(RuntimeError, match="belongs to the speech tokenizer logmel"):
        decode(speech2text, [triple], None, str(tmp_path / "out"), batch_size=3)
    config = yaml.safe_load((experiment / "config.yaml").read_text())
    config["speech_tokenizer"] = str(other)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(RuntimeError, match="this checkpoint belongs to the speech tok"):
        Speech2Text(path, experiment / "valid.acc.ave.pth")


def test_a_pack_carries_its_tokenizer(
    experiment, root, tmp_path, monkeypatch, tiny_base_lm_dir
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packed = tmp_path / "tokens.zip"
    checkpoint = experiment / "valid.acc.ave.pth"
    pack(experiment / "config.yaml", checkpoint, packed)
    samples, _ = soundfile.read(root / "data/a.wav", dtype="float32")
    expected = in_parts(load(experiment)(samples)[0])
    here = experiment / "tokenizer"
    gone = here.rename(experiment / "gone")
    try:
        fetched = Speech2Text.from_pretrained(packed, base_lm=tiny_base_lm_dir)
        assert in_parts(fetched(samples)[0]) == expected
        info = read_tokenizer(gone)[0]
        assert fetched.speech_tokenizer.info == info
    finally:
        gone.rename(here)


def test_segments_of_a_long_recording_are_tokenized(experiment, root, monkeypatch):
    speech2text = load(experiment, search={"no_speech": 0.0})
    samples, _ = soundfile.read(root / "data/a.wav", dtype="float32")
    parts = [Segment(0.0, 0.5, samples[:8000]), Segment(0.5, 0.7, samples[8000:])]
    monkeypatch.setattr("espnet_dus.search.speech2text.segments", lambda *_: parts)
    found = list(speech2text.transcribe_long("a.wav"))
    texts = [speech2text(part.samples)[0].text for part in parts]
    assert [result.hypothesis.text for result in found] == texts
