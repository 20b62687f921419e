"""Long recordings, and word times, from the audio file to the result files."""

import logging

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet_dus.bin.dus_inference import main
from espnet_dus.data.corpora.an4 import find_corpus
from espnet_dus.io import read_scp
from espnet_dus.search.config import SearchConfig
from espnet_dus.search.decode import decode
from espnet_dus.search.long_audio import (
    LongResult,
    batches,
    in_recording,
    join_segments,
)
from espnet_dus.search.result import Hypothesis
from espnet_dus.search.segmentation import Segment, segments
from espnet_dus.search.speech2text import Speech2Text

RATE = 16000


@pytest.fixture(scope="module")
def speech2text(experiment):
    """A model that writes a word or two; its CTC head is random too."""
    return Speech2Text(
        experiment / "config.yaml",
        experiment / "valid.acc.ave.pth",
        search={"no_speech": 0.0, "word_times": True, "maxlenratio": 0.5},
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Four utterances with pauses of two seconds."""
    root = find_corpus("espnet", tmp_path_factory.mktemp("an4"))
    pieces = [np.zeros(2 * RATE, np.float32)]
    for path in sorted(root.rglob("cen*.sph"))[:4]:
        pieces += [soundfile.read(path, dtype="float32")[0], pieces[0]]
    path = tmp_path_factory.mktemp("audio") / "long.wav"
    soundfile.write(path, np.concatenate(pieces), RATE)
    return path


# -- word times ------------------------------------------------------------------------


def check_times(hypothesis, start, end):
    """Words of the transcript, in order, between these seconds."""
    assert [time[0] for time in hypothesis.word_times] == hypothesis.text.split()
    edges = [edge for time in hypothesis.word_times for edge in time[1:3]]
    assert edges == sorted(edges)
    assert all(start <= edge <= end for edge in edges)
    assert all(0 <= time[3] <= 1 for time in hypothesis.word_times)


def test_every_hypothesis_has_the_times_of_its_words(speech2text, noises):
    speeches = noises(1.3, 0.5, 2.1)
    together = speech2text(speeches)
    assert sum(len(h.word_times) for h in together) > 0
    for speech, hypothesis in zip(speeches, together):
        check_times(hypothesis, 0, len(speech) / RATE)
        (alone,) = speech2text(speech)
        for one, other in zip(alone.word_times, hypothesis.word_times, strict=True):
            assert one[0] == other[0]
            assert one[1:] == pytest.approx(other[1:], abs=1e-3)


def test_without_the_option_there_are_no_times(speech2text, noises, monkeypatch):
    monkeypatch.setattr(speech2text, "search", SearchConfig(no_speech=0.0))
    assert not speech2text.needs_ctc
    assert speech2text(noises(0.9))[0].word_times is None


def test_word_times_need_a_ctc_head(tiny_model, tiny_options, tmp_path):
    options = dict(ctc_units=None, model_conf=dict(prompt="", ctc_weight=0.0))
    config = yaml.safe_dump(vars(tiny_options(**options)))
    (tmp_path / "config.yaml").write_text(config)
    torch.save(tiny_model(**options).state_dict(), tmp_path / "x.pth")
    files = (tmp_path / "config.yaml", tmp_path / "x.pth")
    with pytest.raises(ValueError, match="word_times.*without a CTC head"):
        Speech2Text(*files, search={"word_times": True})


# -- long recordings -------------------------------------------------------------------


def test_segments_too_short_for_a_speech_position_are_left_out(
    speech2text, recording, monkeypatch
):
    found = list(segments(recording, RATE))
    short = found[1]._replace(samples=found[1].samples[: speech2text.min_length - 1])
    for kept in ([found[0], short, found[2]], [short]):
        monkeypatch.setattr(
            "espnet_dus.search.speech2text.segments", lambda *_, kept=kept: iter(kept)
        )
        results = list(speech2text.transcribe_long(recording))
        assert len(results) == len(kept) - 1


def test_a_recording_is_transcribed_like_its_segments(speech2text, recording):
    found = list(speech2text.transcribe_long(recording, batch_size=7))
    expected = list(segments(recording, RATE))
    assert len(found) == len(expected) == 4
    for result, segment in zip(found, expected):
        assert (result.start, result.end) == (segment.start, segment.end)
        (alone,) = speech2text(segment.samples)
        assert result.hypothesis.token_int == alone.token_int
        check_times(result.hypothesis, segment.start, segment.end)


def test_batches_are_filled_up_to_their_seconds_and_keep_the_order():
    pieces = [Segment(0.0, s, np.zeros(1)) for s in (3, 3, 3, 5, 2, 9, 1)]
    found = [[s.end for s in batch] for batch in batches(pieces, 9.0)]
    assert found == [[3, 3, 3], [5], [2], [9], [1]]
    assert list(batches([], 9.0)) == []


@pytest.mark.parametrize(
    "start, end, said, placed",
    [
        (3600.0, 3610.0, (0.5, 0.75), (3600.5, 3600.75)),
        # 0.2 + 2.7 > 2.9: no word ends behind the recording
        (2.7, 2.9, (0.125, 0.2), (2.825, 2.9)),
    ],
)
def test_words_of_a_segment_are_placed_in_the_recording(start, end, said, placed):
    hypothesis = Hypothesis("go", ["go"], [7], 0.0, word_times=[("go", *said, 0.4)])
    result = in_recording(Segment(start, end, np.zeros(1)), hypothesis)
    assert result.hypothesis.word_times == [("go", *placed, 0.4)]
    assert (result.start, result.end) == (start, end)


def test_joined_segments_are_one_hypothesis():
    one = Hypothesis("go on", ["Ġgo", "Ġon"], [5, 6], -1.0, [0.5, 0.4])
    one = one._replace(word_times=[("go", 1.0, 1.5, 0.9), ("on", 1.6, 2.0, 0.8)])
    two = Hypothesis("", [], [], 0.0, guards=["no_speech"])
    three = Hypothesis("stop", ["Ġstop"], [7], -0.5, [0.3], [("stop", 9.0, 9.4, 0.7)])
    joined = join_segments(
        [LongResult(1, 2, one), LongResult(4, 5, two), LongResult(8, 10, three)]
    )
    assert (joined.text, joined.token_int, joined.score) == (
        "go on stop",
        [5, 6, 7],
        -1.5,
    )
    assert joined.confidence == [0.5, 0.4, 0.3]
    assert [time[0] for time in joined.word_times] == ["go", "on", "stop"]
    assert joined.guards == ["no_speech"]
    assert join_segments([]) == Hypothesis("", [], [], 0.0)


def run(speech2text, wav_scp, output_dir, segment_seconds):
    triples = [(str(wav_scp), "speech", "sound")]
    decode(speech2text, triples, None, str(output_dir), 60.0, segment_seconds)


def test_recordings_become_result_files_with_ctm_and_subtitles(
    speech2text, recording, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    (tmp_path / "wav.scp").write_text(
        f"long {recording}\nmissing {tmp_path}/missing.wav\n"
        f"silent {tmp_path}/silent.wav\n"
    )
    run(speech2text, tmp_path / "wav.scp", tmp_path / "out", 20.0)
    text = read_scp(tmp_path / "out/1best_recog/text")
    joined = join_segments(speech2text.transcribe_long(recording))
    assert " ".join(joined.text.split()) == text["long"]
    assert (text["missing"], text["silent"]) == ("", "")
    assert (
        sum(
            "recording missing: decoding stopped after 0 segments" in m
            for m in caplog.messages
        )
        == 1
    )
    ctm = [
        line.split()
        for line in (tmp_path / "out/1best_recog/ctm").open(encoding="utf-8")
    ]
    assert [fields[4] for fields in ctm] == joined.text.split()
    assert {fields[0] for fields in ctm} == {"long"}
    assert float(ctm[0][2]) == pytest.approx(joined.word_times[0].start, abs=1e-3)
    assert "1\n00:00:0" in (tmp_path / "out/srt/long.srt").read_text()
    assert (tmp_path / "out/srt/silent.srt").read_text() == ""
    assert sum("recording long: " in m for m in caplog.messages) == 4


def test_the_command_takes_recordings(speech2text, experiment, recording, tmp_path):
    (tmp_path / "wav.scp").write_text(f"long {recording}\n")
    options = {
        "asr_train_config": experiment / "config.yaml",
        "asr_model_file": experiment / "valid.acc.ave.pth",
        "data_path_and_name_and_type": f"{tmp_path}/wav.scp,speech,sound",
        "output_dir": tmp_path / "out",
        "segment_seconds": 20,
        "batch_size": 60,
        "no_speech": 0,
        "word_times": "true",
        "maxlenratio": 0.5,
    }
    main(
        [text for name, value in options.items() for text in (f"--{name}", str(value))]
    )
    text = read_scp(tmp_path / "out/1best_recog/text")["long"]
    assert (
        text.split()
        == join_segments(speech2text.transcribe_long(recording)).text.split()
    )
    ctm = (tmp_path / "out/1best_recog/ctm").read_text(encoding="utf-8")
    assert [line.split()[4] for line in ctm.splitlines()] == text.split()


def test_recordings_are_audio(speech2text, tmp_path):
    (tmp_path / "feats.scp").write_text("a x.ark:1\n")
    triples = [(str(tmp_path / "feats.scp"), "speech", "kaldi_ark")]
    with pytest.raises(ValueError, match="holds kaldi_ark, expected sound"):
        decode(speech2text, triples, None, str(tmp_path / "out"), 60.0, 20.0)
