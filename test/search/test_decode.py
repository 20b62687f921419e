"""Stage 12: a data set into ESPnet's result files."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from espnet_dus.bin import dus_inference
from espnet_dus.io import read_scp
from espnet_dus.search.config import SearchConfig
from espnet_dus.search.decode import decode, take_batch
from espnet_dus.search.records import Decoded, Records
from espnet_dus.search.result import nothing
from espnet_dus.search.speech2text import Speech2Text

FIELDS = ("text", "token", "token_int", "score")


@pytest.fixture(scope="module")
def speech2text(experiment):
    return Speech2Text(
        experiment / "config.yaml",
        experiment / "valid.acc.ave.pth",
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


def tokens(found):
    """Leave out the scores, whose last digits depend on the batch."""
    return {field: found[field] for field in FIELDS if field != "score"}


GOOD = list("abcde")
BAD = ["few_frames", "no_frame", "empty", "nan", "broken", "missing"]


def results(speech2text, corpus, batch_size, key_file=None):
    """Decode and read the tables."""
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


def test_audio_of_any_rate_and_layout_is_decoded_and_a_bad_file_stops_no_other(
    speech2text, tmp_path, noises, caplog
):
    speeches = noises(1.0, 0.8)
    layouts = {
        "京/b": (speeches[0], 16000),
        "京_b": (speeches[1], 16000),
        "stereo": (np.stack([speeches[0]] * 2, 1), 16000),
        "phone": (speeches[0], 8000),
    }
    table = ""
    for n, (key, (speech, rate)) in enumerate(layouts.items()):
        soundfile.write(tmp_path / f"{n}.wav", speech, rate, subtype="FLOAT")
        table += f"{key} {tmp_path / str(n)}.wav\n"
    content = (tmp_path / "1.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[:9000])
    (tmp_path / "twice.wav").write_bytes(content * 2)
    table += f"cut {tmp_path}/cut.wav\ntwice {tmp_path}/twice.wav\n"
    corpus = tmp_path / "wav.scp"
    corpus.write_text(f"\ufeff{table}", encoding="utf-8")
    speech2text.search = SearchConfig(no_speech=0.0, word_times=True)
    try:
        found = results(speech2text, corpus, 99)
    finally:
        speech2text.search = SearchConfig(no_speech=0.0)
    assert found["text"]["stereo"] == found["text"]["京/b"]
    lengths = {
        record["key"]: record["length"]
        for record in map(
            json.loads, (tmp_path / "out_99/hypotheses.jsonl").read_text().splitlines()
        )
        if "key" in record
    }
    assert lengths["phone"] == 32000 and lengths["stereo"] == 16000
    errors = [m for m in caplog.messages if "is not decoded" in m]
    assert len(errors) == 2
    assert "cut.wav: is truncated" in errors[0] + errors[1]
    assert "twice.wav: holds several recordings" in errors[0] + errors[1]
    # one file of subtitles each
    assert len(list((tmp_path / "out_99/srt").iterdir())) == len(found["text"]) == 6


def test_one_channel_of_several_is_decoded(speech2text, tmp_path, noises):
    left, right = noises(0.9, 0.9)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], 1), 16000, "FLOAT")
    (tmp_path / "wav.scp").write_text(f"u {tmp_path}/two.wav\n")
    triple = str(tmp_path / "wav.scp"), "speech", "sound"

    def found(channel):
        decode(speech2text, [triple], None, tmp_path / "out", 9, channel=channel)
        return float(read_scp(tmp_path / "out/1best_recog/score")["u"])

    expected = [speech2text(s)[0].score for s in (left, right, (left + right) / 2)]
    assert len({round(score, 2) for score in expected}) == 3
    assert [*map(found, (0, 1, "mean"))] == pytest.approx(expected, abs=1e-3)
    assert found(2) == 0  # reported, like what cannot be read
    with pytest.raises(ValueError, match="channel: 1 has no effect: .* kaldi_ark"):
        triple = (*triple[:2], "kaldi_ark")
        decode(speech2text, [triple], None, tmp_path / "ark", 9, channel=1)


def test_a_table_without_paths_is_an_error_that_names_the_line(speech2text, tmp_path):
    (tmp_path / "k.scp").write_text("u1\n")
    with pytest.raises(ValueError, match="k.scp:1: u1: expected a value after the key"):
        results(speech2text, tmp_path / "k.scp", 9)


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


def test_utterances_that_are_not_there_are_an_error(speech2text, corpus):
    keys = corpus.with_name("keys.scp")
    keys.write_text("")
    with pytest.raises(ValueError, match="keys.scp: no utterance to decode"):
        results(speech2text, corpus, 8, keys)
    keys.write_text("a x\nf x\nb x\ng x\n")
    message = r"keys.scp: 2 utterance\(s\) are not in .*wav.scp, the first f"
    with pytest.raises(ValueError, match=message):
        results(speech2text, corpus, 8, keys)
    corpus.write_text("")
    with pytest.raises(ValueError, match="wav.scp: no utterance to decode"):
        results(speech2text, corpus, 8)


def test_each_utterance_has_subtitles_of_its_own(speech2text, corpus, monkeypatch):
    audio = corpus.parent / "a.wav"
    keys = ["a/b", "a_b", "a:b", "k" * 300]
    corpus.write_text("".join(f"{key} {audio}\n" for key in keys))
    search = SearchConfig(word_times=True, no_speech=0.0)
    monkeypatch.setattr(speech2text, "search", search)
    results(speech2text, corpus, 8)
    assert len(list((corpus.parent / "out_8" / "srt").glob("*.srt"))) == len(keys)


def test_one_waveform_and_a_list_of_them_are_transcribed(speech2text, noises):
    one, other = noises(0.9, 0.4)
    assert speech2text(one)[0].token_int == speech2text([one])[0].token_int
    pair = speech2text([torch.from_numpy(one), other.astype(np.float64)])
    assert [h.token_int for h in pair] == [
        speech2text(speech)[0].token_int for speech in (one, other)
    ]


def test_what_the_decoding_took_is_written(speech2text, corpus):
    results(speech2text, corpus, batch_size=4)
    cost = json.loads((corpus.parent / "out_4" / "decode.json").read_text())
    assert cost["utterances"] == 11
    assert cost["checkpoint"] == speech2text.origin["checkpoint"]
    # the good ones, 1000 samples and 50
    audio = 0.9 + 0.4 + 1.3 + 0.7 + 0.5 + 1050 / 16000
    assert cost["audio_seconds"] == pytest.approx(audio)
    lines = (corpus.parent / "out_4" / "hypotheses.jsonl").read_text().splitlines()
    records = [*map(json.loads, lines)]
    assert cost["seconds"] == pytest.approx(sum(r["seconds"] for r in records))
    passes = sum(r["nbest"][0]["llm_passes"] for r in records)
    assert cost["llm_passes"] == passes > 5


# -- batches ---------------------------------------------------------------------------


def record_batches(speech2text, monkeypatch, fails=lambda speeches: None):
    """Record how many utterances are decoded at a time; `fails` may raise."""
    sizes, nbest = [], speech2text.nbest

    def recorded(speeches, prompts):
        sizes.append(len(speeches))
        fails(speeches)
        return nbest(speeches, prompts)

    monkeypatch.setattr(speech2text, "nbest", recorded)
    return sizes


def test_a_batch_holds_the_given_seconds_the_longest_first():
    lengths = {"a": 40, "b": 30, "c": 20, "d": 20, "e": 0}
    waiting, batches = list(lengths), []
    while waiting:
        batches.append(take_batch(waiting, lengths, budget=70))
        del waiting[: len(batches[-1])]
    assert batches == [["a"], ["b", "c"], ["d", "e"]]
    assert take_batch(["a"], lengths, budget=1) == ["a"]


def test_utterances_of_like_length_go_together(speech2text, corpus, monkeypatch):
    keys = corpus.with_name("keys.scp")
    keys.write_text("".join(f"{key} x\n" for key in GOOD))
    sizes = record_batches(speech2text, monkeypatch)
    results(speech2text, corpus, 1.9, keys)  # of 1.3, 0.9, 0.7, 0.5 and 0.4 s
    assert sizes == [1, 2, 2]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"),
    ],
)
def test_batches_are_halved_when_the_memory_does_not_suffice(
    speech2text, corpus, monkeypatch, caplog, error
):
    expected = tokens(results(speech2text, corpus, 99))

    def fail(speeches):
        if len(speeches) > 2:
            raise error

    sizes = record_batches(speech2text, monkeypatch, fail)
    assert tokens(results(speech2text, corpus, 98)) == expected
    assert sizes == [5, 4, 2, 2, 1]
    assert "out of memory with 11 utterances per batch" in caplog.text


def test_an_utterance_too_large_for_the_memory_does_not_stop_the_others(
    speech2text, corpus, monkeypatch, caplog
):
    def fail(speeches):
        if max(map(len, speeches)) > 20000:
            raise torch.OutOfMemoryError("CUDA out of memory")

    record_batches(speech2text, monkeypatch, fail)
    found = results(speech2text, corpus, 99)["text"]
    assert found["c"] == "" and found["a"]
    assert "utterance c is not decoded: CUDA out of memory" in caplog.text


def test_another_error_is_raised(speech2text, corpus, monkeypatch):
    def fail(speeches):
        raise RuntimeError("shapes cannot be multiplied")

    record_batches(speech2text, monkeypatch, fail)
    with pytest.raises(RuntimeError, match="shapes"):
        results(speech2text, corpus, 99)


# -- interruptions ---------------------------------------------------------------------


def interrupted(speech2text, corpus, monkeypatch, after):
    """Decode one utterance at a time until a batch is interrupted."""
    with monkeypatch.context() as patch:
        batches = []

        def fail(speeches):
            batches.append(1)
            if len(batches) > after:
                raise KeyboardInterrupt

        record_batches(speech2text, patch, fail)
        with pytest.raises(KeyboardInterrupt):
            results(speech2text, corpus, 0.1)
    (partial,) = corpus.parent.glob("out_0.1/*.jsonl")
    return partial


@pytest.mark.parametrize("cut", [0, 20])
def test_an_interrupted_run_resumes(speech2text, corpus, monkeypatch, cut):
    expected = tokens(results(speech2text, corpus, 99))
    partial = interrupted(speech2text, corpus, monkeypatch, after=3)
    content = partial.read_bytes()
    # three good ones and one that is not
    assert content.count(b"\n") == 1 + 4
    if cut:  # killed in the middle of a line
        partial.write_bytes(content[:-cut])
    sizes = record_batches(speech2text, monkeypatch)
    assert tokens(results(speech2text, corpus, 0.1)) == expected
    assert len(sizes) == len(GOOD) - (2 if cut else 3)
    assert not partial.exists()
    lines = partial.with_name("hypotheses.jsonl").read_text().splitlines()
    records = {record["key"]: record for record in map(json.loads, lines)}
    assert list(records) == sorted(GOOD + BAD)
    assert records["a"]["nbest"][0]["text"] == speech2text(read(corpus, "a"))[0].text
    # the time of both runs
    cost = json.loads(partial.with_name("decode.json").read_text())
    seconds = sum(record["seconds"] for record in records.values())
    assert cost["seconds"] == pytest.approx(seconds)


def test_a_record_that_was_cut_inside_a_character_is_decoded_again(tmp_path):
    records = Records(tmp_path, {})
    for key in "ab":
        records.add({key: Decoded([nothing()._replace(text="für")], 1, 1.0)})
    content = records.partial.read_bytes()
    records.partial.write_bytes(content[: content.rindex("ü".encode()) + 1])
    assert list(Records(tmp_path, {}).done) == ["a"]


def test_what_a_run_with_fewer_jobs_has_left_is_not_in_the_results(tmp_path):
    left = Records(tmp_path, {})
    left.add({key: Decoded([nothing()], 1, 1.0) for key in "ba"})
    Records(tmp_path, {}).finish(["b"])
    (line,) = (tmp_path / "hypotheses.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "b"


def test_a_finished_run_is_repeated(speech2text, corpus, monkeypatch):
    results(speech2text, corpus, 0.1)
    sizes = record_batches(speech2text, monkeypatch)
    results(speech2text, corpus, 0.1)
    assert len(sizes) == len(GOOD)


@pytest.mark.parametrize("changed", ["search", "data", "model"])
def test_another_run_is_not_gone_on_with(speech2text, corpus, monkeypatch, changed):
    interrupted(speech2text, corpus, monkeypatch, after=3)
    if changed == "data":
        corpus.write_text("".join(reversed(corpus.read_text().splitlines(True))))
    elif changed == "model":
        monkeypatch.setitem(speech2text.origin, "checkpoint", "another's")
    else:
        search = SearchConfig(maxlenratio=0.9, no_speech=0.0)
        monkeypatch.setattr(speech2text, "search", search)
    sizes = record_batches(speech2text, monkeypatch)
    results(speech2text, corpus, 0.1)
    assert len(sizes) == len(GOOD)


# -- what is written -------------------------------------------------------------------


def read(corpus, key):
    return soundfile.read(corpus.parent / f"{key}.wav", dtype="float32")[0]


def test_each_of_the_nbest_has_its_directory(speech2text, corpus, monkeypatch):
    monkeypatch.setattr(
        speech2text, "search", SearchConfig(beam_size=3, nbest=2, no_speech=0.0)
    )
    results(speech2text, corpus, 99)
    tables = [
        read_scp(corpus.parent / "out_99" / f"{n}best_recog" / "token_int")
        for n in (1, 2)
    ]
    assert not (corpus.parent / "out_99" / "3best_recog").exists()
    assert list(tables[0]) == sorted(GOOD + BAD) and list(tables[1]) == GOOD
    for key in GOOD:
        found = speech2text(read(corpus, key))
        for table, hypothesis in zip(tables, found, strict=True):
            assert table[key] == " ".join(map(str, hypothesis.token_int))


def test_what_another_run_has_left_is_removed(speech2text, corpus):
    out = corpus.parent / "out_99"
    for name in ("1best_recog/ctm", "2best_recog/text", "srt/a.srt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("of another run\n")
    results(speech2text, corpus, 99)
    assert not (out / "2best_recog").exists() and not (out / "srt").exists()
    assert not (out / "1best_recog" / "ctm").exists()


def test_the_lines_that_espnets_rtf_step_reads_come_in_pairs(
    speech2text, corpus, caplog
):
    caplog.set_level(logging.INFO)
    results(speech2text, corpus, 99)
    lines = [
        message.split(":")[0]
        for message in caplog.messages
        if message.startswith(("speech length: ", "best hypo: "))
    ]
    assert lines == ["speech length", "best hypo"] * len(GOOD + BAD)


def test_a_guard_that_acts_is_logged(speech2text, corpus, caplog):
    results(speech2text, corpus, 99)
    path = corpus.parent / "out_99" / "hypotheses.jsonl"
    records = map(json.loads, path.read_text().splitlines())
    guards = {record["key"]: record["nbest"][0]["guards"] for record in records}
    assert any(guards[key] for key in GOOD)
    for key, (*names,) in guards.items():
        found = f"utterance {key}: a guard changed the transcript: {', '.join(names)}\n"
        assert (found in caplog.text) == bool(names)


# -- the command -----------------------------------------------------------------------

CONF = Path(__file__).resolve().parents[2] / "egs2" / "TEMPLATE" / "dus1" / "conf"


@pytest.mark.parametrize("name", ["decode_dus", "decode_dus_draft", "decode_dus_joint"])
def test_the_command_takes_the_options_of_a_search(experiment, corpus, name, tmp_path):
    options = ["--config", CONF / f"{name}.yaml", "--no_speech", "0"]
    options += ["--data_path_and_name_and_type", f"{corpus},speech,sound"]
    options += ["--asr_train_config", experiment / "config.yaml"]
    options += ["--asr_model_file", experiment / "valid.acc.ave.pth"]
    options += ["--output_dir", tmp_path / "out"]
    dus_inference.main([*map(str, options)])
    expected = Speech2Text(
        experiment / "config.yaml",
        experiment / "valid.acc.ave.pth",
        search=(
            {"no_speech": 0.0, "beam_size": 4, "ctc_weight": 0.3}
            if name == "decode_dus_joint"
            else {"no_speech": 0.0}
        ),  # the draft changes nothing
    )
    found = read_scp(tmp_path / "out" / "1best_recog" / "token_int")
    for key in GOOD:
        (hypothesis,) = expected(read(corpus, key))
        assert found[key] == " ".join(map(str, hypothesis.token_int))


OPTIONS_OF_NO_MODEL = (
    "--asr_train_config x --asr_model_file y --output_dir z "
    "--data_path_and_name_and_type wav.scp,speech,sound"
).split()


def test_a_wrong_option_is_an_error_for_users(capsys):
    with pytest.raises(SystemExit):
        dus_inference.main([*OPTIONS_OF_NO_MODEL, "--ctc_weight", "0.3"])
    assert "error: ctc_weight: 0.3 has no effect" in capsys.readouterr().err


def test_prompts_of_the_data_are_read_before_the_speech(speech2text, corpus, noises):
    speech = ("speech", "sound")
    keys = corpus.with_name("keys")
    keys.write_text("a\nb\n")
    table = corpus.with_name("prompt")
    table.write_text("a the dog ran after it\nb yes\nc no\n")
    before = (str(table), "text_before", "text")
    out = corpus.parent / "prompted"
    decode(speech2text, [(str(corpus), *speech), before], str(keys), str(out), 4)
    found = read_scp(out / "1best_recog" / "token_int")
    expected = speech2text(noises(0.9, 0.4), ["the dog ran after it", "yes"])
    assert found == {
        key: " ".join(map(str, h.token_int)) for key, h in zip("ab", expected)
    }
    table.write_text("a yes\n")
    for triple, message in (
        (before, "prompt has no prompt of 1 utterance.s., the first b"),
        ((str(table), "prompt", "text"), "expected ...,text_before,text"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(
                speech2text,
                [(str(corpus), *speech), triple],
                str(keys),
                corpus.parent / "refused",
                4,
            )
    assert not (corpus.parent / "refused").exists()


def test_a_damaged_configuration_is_an_error_that_names_it(tmp_path, capsys):
    config = tmp_path / "decode.yaml"
    config.write_text("beam_size: 1\n draft: true\n")
    with pytest.raises(SystemExit):
        dus_inference.main(["--config", str(config), *OPTIONS_OF_NO_MODEL])
    message = f"error: {config}: mapping values are not allowed here"
    assert message in capsys.readouterr().err
