"""Shards: what a data directory holds, whole or absent, resumed shard by shard."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_dus.app import cli
from espnet_dus.data.ctc_units import CTCUnits
from espnet_dus.data.dataset import TooManyBadUtterances
from espnet_dus.data.format import format_data
from espnet_dus.data.shards import shar
from espnet_dus.data.shards.shar import (
    list_shards,
    read_info,
    write_data_dir,
    write_shards,
)
from espnet_dus.io import read_scp

DURATIONS = {key: 0.1 + 0.01 * n for n, key in enumerate("abcdefg")}


@pytest.fixture
def dump(make_data_dir, tmp_path):
    format_data(make_data_dir(DURATIONS), tmp_path / "dump")
    return tmp_path / "dump"


def read_back(shard_dir):
    from lhotse import CutSet

    fields = {"cuts": [], "recording": []}
    for shard in list_shards(shard_dir):
        for name, path in shard.items():
            fields[name].append(path)
    return {cut.id: cut for cut in CutSet.from_shar(fields=fields)}


def test_shards_hold_what_the_data_directory_holds(dump, tmp_path):
    out = tmp_path / "shar" / "train"
    cli.main(
        ["shar", "--data_dir", f"{dump}", "--out_dir", f"{out}", "--shard_size", "3"]
    )
    info = read_info(out)
    assert (info.num_shards, info.num_utterances) == (3, 7)
    assert info.seconds == pytest.approx(sum(DURATIONS.values()), abs=1e-3)
    cuts, paths = read_back(out), read_scp(dump / "wav.scp")
    assert sorted(cuts) == sorted(DURATIONS) != list(cuts)  # shuffled
    for key, cut in cuts.items():
        samples, fs = soundfile.read(paths[key], dtype="float32")
        assert cut.sampling_rate == fs == 16000
        assert np.array_equal(cut.load_audio()[0], samples)
        assert cut.supervisions[0].text == f"WORDS OF {key}"
        assert cut.supervisions[0].speaker == "spk"
    assert {path.name for path in out.parent.iterdir()} == {"train"}


@pytest.mark.parametrize("weights", [False, True])
def test_ctc_units_come_from_the_transcripts_of_all_shards(
    dump, tmp_path, tiny_base_lm_dir, weights
):
    shards = tmp_path / "shar" / "train"
    cli.main(["shar", "--data_dir", f"{dump}", "--out_dir", f"{shards}"])
    if weights:
        mix = tmp_path / "mix.yaml"
        mix.write_text(f"{shards}: 0.5\n{tmp_path}/absent: 0\n")
        shards = mix
    (tmp_path / "text").write_text("x QZ\n")
    options = ["tokens", "--base_lm", tiny_base_lm_dir, "--text", tmp_path / "text"]
    options += ["--shards", shards, "--out_dir", tmp_path, "--ctc_token_type", "char"]
    cli.main([*map(str, options)])
    units = CTCUnits(tmp_path / "ctc").units
    assert units[2:] == sorted({*"QZ", *"WORDSOF", *DURATIONS, "<space>"})


def snapshot(path):
    return {file.name: file.stat().st_mtime_ns for file in path.rglob("*.*")}


def test_a_stopped_run_goes_on_with_the_shard_that_is_missing(
    dump, tmp_path, monkeypatch
):
    out, written, real = tmp_path / "shar", [], shar._write_shard

    def stopped(block, **options):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(block[0])
        return real(block, **options)

    monkeypatch.setattr(shar, "_write_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_data_dir(dump, out, shard_size=2)
    assert not out.exists()  # nobody takes it for finished
    partial = tmp_path / ".shar.partial"
    (partial / "shards" / ".recording.000002.9.tmp.tar").touch()  # of a killed process
    before = snapshot(partial / "shards")
    monkeypatch.setattr(shar, "_write_shard", real)
    write_data_dir(dump, out, shard_size=2)
    after = snapshot(out / "shards")
    kept = {name for name in after if before.get(name) == after[name]}
    assert len(kept) == 4 and len(after) == 8 and read_info(out).num_utterances == 7
    assert sorted(read_back(out)) == sorted(DURATIONS)


def test_the_same_is_not_done_twice_and_what_has_changed_is(dump, tmp_path):
    out = tmp_path / "shar"
    write_data_dir(dump, out, shard_size=4)
    before = snapshot(out)
    write_data_dir(dump, out, shard_size=4)
    assert snapshot(out) == before
    text = (dump / "text").read_text()
    (dump / "text").write_text(text.replace("WORDS OF a", "OTHER WORDS"))
    write_data_dir(dump, out, shard_size=4)
    assert read_back(out)["a"].supervisions[0].text == "OTHER WORDS"


def test_unreadable_audio_is_named_and_left_out_up_to_a_limit(dump, tmp_path):
    paths = read_scp(dump / "wav.scp")
    with open(paths["c"], "wb") as file:
        file.write(b"no audio")
    with pytest.raises(TooManyBadUtterances, match="utterance c: .*0 are allowed"):
        write_data_dir(dump, tmp_path / "shar")
    write_data_dir(dump, tmp_path / "shar", max_bad_utterances=1)
    assert sorted(read_back(tmp_path / "shar")) == list("abdefg")
    assert "c " in (tmp_path / "shar" / "bad_utterances.txt").read_text()


def test_a_file_cut_short_is_named_when_the_shards_are_written(dump, tmp_path):
    path = Path(read_scp(dump / "wav.scp")["c"])
    path.write_bytes(path.read_bytes()[:-200])  # its header announces all samples
    with pytest.raises(TooManyBadUtterances, match="utterance c"):
        write_data_dir(dump, tmp_path / "shar")


def test_cuts_of_another_rate_and_of_parts_of_a_file_become_flac(tmp_path, noise):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(1.0, fs=8000), 8000)
    whole = shar.make_cut("a", str(path), 8000, 8000, "WORDS", "spk")
    part = whole.truncate(offset=0.25, duration=0.5)
    part.id = "part"
    write_shards([whole, part], tmp_path / "out", "x", fs=16000)
    cuts = read_back(tmp_path / "out")
    assert cuts["a"].num_samples == 16000 and cuts["part"].num_samples == 8000
    assert cuts["part"].load_audio().shape == (1, 8000)
    assert cuts["part"].supervisions[0].text == "WORDS"


def test_lines_of_a_shard_are_lhotses(dump, tmp_path):
    write_data_dir(dump, tmp_path / "shar")
    with gzip.open(list_shards(tmp_path / "shar")[0]["cuts"], "rt") as lines:
        cut = json.loads(next(lines))
    assert cut["type"] == "MonoCut" and cut["recording"]["sources"][0]["type"] == "shar"


def test_what_is_no_dump_or_no_shards_is_an_error(make_data_dir, dump, tmp_path):
    with pytest.raises(
        ValueError, match="expected audio or speech tokens that stage 3"
    ):
        write_data_dir(make_data_dir({"a": 0.1}, name="plain"), tmp_path / "shar")
    with pytest.raises(ValueError, match="info.json: no such file"):
        list_shards(dump)
    with pytest.raises(ValueError, match="expected a shard_size from 1 on, got 0"):
        write_data_dir(dump, tmp_path / "shar", shard_size=0)
    write_data_dir(dump, tmp_path / "shar")
    (tmp_path / "shar/shards/cuts.000000.jsonl.gz").unlink()
    with pytest.raises(ValueError, match="0 shards, info.json says 1"):
        list_shards(tmp_path / "shar")


def test_data_with_prompts_are_refused(dump, tmp_path):
    (dump / "prompt").write_text(
        "".join(f"{key} Write:\n" for key in read_scp(dump / "text"))
    )
    with pytest.raises(ValueError, match="prompt: shards do not hold prompts"):
        write_data_dir(dump, tmp_path / "shar")
