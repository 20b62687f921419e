"""Word times from the CTC head, as CTM and as subtitles."""

import pytest
import torch

from espnet_dus.data.ctc_units import BLANK, SPACE, CTCUnits
from espnet_dus.data.lengths import PositionTimes, position_times
from espnet_dus.search.subtitles import srt, write_ctm
from espnet_dus.search.timing import (
    LEAD_SECONDS,
    TAIL_SECONDS,
    WordTime,
    word_times,
)


@pytest.fixture
def units(ctc_units_dirs, tiny_lm):
    """Return the units of a type."""
    return lambda unit_type: CTCUnits(ctc_units_dirs[unit_type], tiny_lm[1])


def posteriors(path, num_units, sure=0.9):
    """Log-probabilities (S, U) of a head that is this sure of each frame's unit."""
    probs = torch.full((len(path), num_units), (1 - sure) / (num_units - 1))
    probs[torch.arange(len(path)), torch.tensor(path)] = sure
    return probs.log()


def frames(units, text):
    """Put each unit on two frames, with a blank before it; give spans of words too."""
    path, spans = [], []
    for word in text.split():
        if path and units.type == "char":
            path += [units.ids[SPACE]] * 2
        start = len(path) + 1
        for unit in units.encode(word):
            path += [BLANK, unit, unit]
        spans.append((start, len(path)))
    return path + [BLANK], spans


# positions that hear 0.25 s each, without gap or overlap, from the start of the audio
QUARTERS = PositionTimes(0.125, 0.25)
SECONDS = PositionTimes(0.5, 1.0)


@pytest.mark.parametrize("unit_type", ["llm", "bpe", "char"])
@pytest.mark.parametrize("text", ["HOW ARE YOU TODAY", "HELLO WORLD", "YES"])
def test_words_are_where_the_posteriors_have_them(units, unit_type, text):
    units = units(unit_type)
    path, spans = frames(units, text)
    end = len(path) * 0.25
    found = word_times(posteriors(path, len(units)), text, units, QUARTERS, end)
    assert [t.word for t in found] == text.split()
    for n, (time, (start, stop)) in enumerate(zip(found, spans)):
        assert time.start == pytest.approx(0.125 + start * 0.25 - LEAD_SECONDS)
        tail = 0.125 + (stop - 1) * 0.25 + TAIL_SECONDS
        assert time.end == pytest.approx(min(tail, [*found, (0, end)][n + 1][1]))


@pytest.mark.parametrize("blanks", [0, 1, 2, 9])
def test_a_word_extends_over_at_most_a_quarter_second_of_blanks(units, blanks):
    units = units("char")
    yes, stop = ([units.ids[c] for c in word] for word in ("YES", "STOP"))
    path = [*yes, *[BLANK] * blanks, units.ids[SPACE], *stop]
    positions, end = PositionTimes(0.1, 0.1), 0.1 * len(path) + 0.15
    found = word_times(posteriors(path, len(units)), "YES STOP", units, positions, end)
    assert found[0].start == 0.0
    assert found[1].start == pytest.approx(0.1 * (1 + 3 + blanks + 1) - 0.125)
    assert found[0].end == pytest.approx(min(0.3 + 0.25, found[1].start))
    # what no position is centred on, at the end of the audio, is the last word's too
    assert found[1].end == pytest.approx(end)


def test_words_that_adjoin_meet_halfway_between_their_units(units):
    units = units("llm")
    ids = [units.encode(word) for word in ("YES", "HOW")]
    path = [BLANK, *ids[0], *ids[1], BLANK]
    positions = PositionTimes(0.086, 0.08)
    yes, how = word_times(
        posteriors(path, len(units)), "YES HOW", units, positions, 9.0
    )
    assert yes.end == how.start == pytest.approx(0.086 + (len(ids[0]) + 0.5) * 0.08)


def test_the_confidence_is_the_mean_posterior_of_the_words_frames(units):
    units = units("char")
    path, _ = frames(units, "YES STOP")
    log_probs = posteriors(path, len(units))
    log_probs[5:7] = posteriors(path[5:7], len(units), sure=0.3)  # the E of YES
    yes, stop = word_times(log_probs, "YES STOP", units, SECONDS, len(path))
    assert stop.confidence == pytest.approx(0.9)
    sure = log_probs[[1, 2, 4, 5, 7, 8], [path[i] for i in (1, 2, 4, 5, 7, 8)]]
    assert yes.confidence == pytest.approx(sure.mean().exp().item(), rel=1e-5)
    assert yes.confidence < stop.confidence


def test_a_word_that_the_head_does_not_know_fills_the_gap(units):
    units = units("char")
    path, spans = frames(units, "YES STOP")
    yes, *unknown, stop = word_times(
        posteriors(path, len(units)), "YES zz qq STOP", units, SECONDS, len(path)
    )
    assert yes.end == spans[0][1] and stop.start == spans[1][0]
    middle = (yes.end + stop.start) / 2
    assert unknown == [
        WordTime("zz", yes.end, middle, 0.0),
        WordTime("qq", middle, stop.start, 0.0),
    ]


def test_unknown_words_at_the_edges_reach_to_the_edges(units):
    units = units("char")
    path, _ = frames(units, "STOP")
    duration = len(path) + 0.75
    first, stop, last = word_times(
        posteriors(path, len(units)), "zz STOP qq", units, SECONDS, duration
    )
    assert (first.start, first.end) == (0.0, stop.start)
    assert (last.start, last.end) == (stop.end, duration)


@pytest.mark.parametrize("num_frames", [3, 0])
def test_more_units_than_positions_spread_the_words_evenly(units, num_frames):
    units = units("char")
    log_probs = torch.zeros(num_frames, len(units)).log_softmax(-1)
    found = word_times(log_probs, "HOW ARE YOU", units, SECONDS, 0.6)
    assert [t.word for t in found] == ["HOW", "ARE", "YOU"]
    assert [t.start for t in found] == pytest.approx([0, 0.2, 0.4])
    assert found[-1].end == pytest.approx(0.6)
    assert [t.confidence for t in found] == [0.0] * 3


def test_a_repeated_unit_needs_a_blank_between(units):
    units = units("char")
    length = len("HELLO")  # five frames would do, were it not for LL
    log_probs = torch.zeros(length, len(units))
    spread = word_times(log_probs, "HELLO", units, SECONDS, 5.0)
    assert spread == [WordTime("HELLO", 0.0, 5.0, 0.0)]
    path = [units.ids[c] for c in "HEL"] + [BLANK] + [units.ids[c] for c in "LO"]
    log_probs = posteriors(path, len(units))
    (aligned,) = word_times(log_probs, "HELLO", units, SECONDS, 6.0)
    assert aligned[:3] == ("HELLO", 0.0, 6.0)
    assert aligned.confidence == pytest.approx(0.9)


def test_no_word_has_no_time(units):
    assert word_times(torch.zeros(5, 20), " ", units("llm"), SECONDS, 5.0) == []


@pytest.mark.parametrize("input_layer", ["conv2d", "conv2d8"])
@pytest.mark.parametrize("center", [False, True])
def test_a_position_is_placed_where_the_model_hears_it(
    tiny_model, tiny_options, input_layer, center
):
    options = dict(
        frontend_conf=dict(
            fs=16000,
            n_fft=512,
            win_length=400,
            hop_length=160,
            n_mels=20,
            center=center,
        ),
        speech_embedder_conf=dict(
            channels=8, dropout_rate=0.0, input_layer=input_layer
        ),
        normalize=None,  # that of the utterance hears all of it
    )
    model, times = tiny_model(**options).eval(), position_times(tiny_options(**options))
    torch.manual_seed(0)
    speech = (0.1 * torch.randn(1, 32000)).requires_grad_()
    embedded_BSD, lengths_B = model.embed_speech(speech, torch.tensor([32000]))
    seconds = torch.arange(32000) / 16000
    centres = []
    for i in range(3, int(lengths_B) - 3):
        (grad,) = torch.autograd.grad(
            embedded_BSD[0, i].square().sum(), speech, retain_graph=True
        )
        weight = grad[0].abs()
        centres.append(float((weight * seconds).sum() / weight.sum()))
        assert centres[-1] == pytest.approx(times.first + i * times.step, abs=0.025)
    errors = [c - times.first - (i + 3) * times.step for i, c in enumerate(centres)]
    assert sum(errors) / len(errors) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(
    "input_layer, first, step", [("conv2d", 3, 4), ("conv2d8", 7, 8)]
)
def test_positions_of_given_features_count_their_frames(
    tiny_options, input_layer, first, step
):
    args = tiny_options(
        input_size=20, speech_embedder_conf=dict(input_layer=input_layer)
    )
    assert position_times(args) == pytest.approx(((first + 0.5) / 100, step / 100))


def test_ctm_has_sclites_fields(tmp_path):
    times = {
        "b": [WordTime("go", 0.08, 0.4, 0.5), WordTime("on", 1.2, 1.3456, 1.0)],
        "a": [WordTime("stop", 3600.0, 3600.25, 0.0)],
        "silent": [],
    }
    write_ctm(tmp_path / "ctm", times)
    assert (tmp_path / "ctm").read_text().splitlines() == [
        "a 1 3600.000 0.250 stop 0.000",
        "b 1 0.080 0.320 go 0.500",
        "b 1 1.200 0.146 on 1.000",
    ]


# -- subtitles -------------------------------------------------------------------------


def cues(times):
    blocks = [
        block.strip("\n").split("\n") for block in srt(times).split("\n\n") if block
    ]
    assert [block[0] for block in blocks] == [str(n + 1) for n in range(len(blocks))]
    return [(block[1], block[2:]) for block in blocks]


def say(words, start=0.0, seconds=0.5):
    return [
        WordTime(word, start + i * seconds, start + (i + 1) * seconds, 1.0)
        for i, word in enumerate(words.split())
    ]


def test_a_short_sentence_is_one_cue(tmp_path):
    found = cues(say("one two three", start=3661.0))
    assert found == [("01:01:01,000 --> 01:01:02,500", ["one two three"])]


def test_a_pause_starts_a_cue_and_a_short_cue_stays_until_the_next(tmp_path):
    times = [*say("go", 0.0, 0.1), *say("on", 1.5, 0.1), *say("now then", 2.7, 0.1)]
    assert cues(times) == [
        ("00:00:00,000 --> 00:00:01,000", ["go"]),
        ("00:00:01,500 --> 00:00:02,500", ["on"]),
        ("00:00:02,700 --> 00:00:03,700", ["now then"]),
    ]
    touching = [*say("on", 1.5, 0.1), *say("x " * 90, 2.0, 0.01)]
    first, second, *_ = cues(touching)
    assert first[0].split(" --> ")[1] == second[0].split(" --> ")[0]


def test_no_cue_is_longer_than_seven_seconds_or_two_lines(tmp_path):
    slow = cues(say("word " * 20, seconds=1.0))
    assert [text for _, text in slow] == [[" ".join(["word"] * 7)]] * 2 + [
        [" ".join(["word"] * 6)]
    ]
    fast = cues(say("abcdefghi " * 20, seconds=0.1))
    assert [text for _, text in fast] == [
        [" ".join(["abcdefghi"] * 4)] * 2,
        [" ".join(["abcdefghi"] * 4)] * 2,
        [" ".join(["abcdefghi"] * 4)],
    ]


def test_a_very_long_word_stands_alone(tmp_path):
    word = "x" * 100
    assert [text for _, text in cues(say(f"a {word} b"))] == [
        ["a", word],
        ["b"],
    ]


def test_no_word_gives_an_empty_file(tmp_path):
    assert cues([]) == []
