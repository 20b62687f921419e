"""Shards hold what a data directory holds, except what cannot be read."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_dus.app import cli
from espnet_dus.data.dataset import TooManyBadUtterances
from espnet_dus.data.shards.from_data_dir import write_data_dir
from espnet_dus.data.shards.shar import list_shards, read_info
from espnet_dus.io import read_scp


def test_shards_hold_what_the_data_directory_holds(
    dump, durations, read_back, tmp_path
):
    out = tmp_path / "shar" / "train"
    cli.main(
        ["shar", "--data_dir", f"{dump}", "--out_dir", f"{out}", "--shard_size", "3"]
    )
    info = read_info(out)
    assert (info.num_shards, info.num_utterances) == (3, 7)
    assert info.seconds == pytest.approx(sum(durations.values()), abs=1e-3)
    cuts, paths = read_back(out), read_scp(dump / "wav.scp")
    assert sorted(cuts) == sorted(durations) != list(cuts)  # shuffled
    for key, cut in cuts.items():
        samples, fs = soundfile.read(paths[key], dtype="float32")
        assert cut.sampling_rate == fs == 16000
        assert np.array_equal(cut.load_audio()[0], samples)
        assert cut.supervisions[0].text == f"WORDS OF {key}"
        assert cut.supervisions[0].speaker == "spk"
    assert {path.name for path in out.parent.iterdir()} == {"train"}


def test_unreadable_audio_is_named_and_left_out_up_to_a_limit(
    dump, read_back, tmp_path
):
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


def test_lines_of_a_shard_are_lhotses(dump, tmp_path):
    write_data_dir(dump, tmp_path / "shar")
    with gzip.open(list_shards(tmp_path / "shar")[0]["cuts"], "rt") as lines:
        cut = json.loads(next(lines))
    assert cut["type"] == "MonoCut" and cut["recording"]["sources"][0]["type"] == "shar"


def test_what_is_no_dump_is_an_error(make_data_dir, dump, tmp_path):
    with pytest.raises(
        ValueError, match="expected audio or speech tokens that stage 3"
    ):
        write_data_dir(make_data_dir({"a": 0.1}, name="plain"), tmp_path / "shar")
    with pytest.raises(ValueError, match="expected a shard_size from 1 on, got 0"):
        write_data_dir(dump, tmp_path / "shar", shard_size=0)


def test_data_with_prompts_are_refused(dump, tmp_path):
    (dump / "prompt").write_text(
        "".join(f"{key} Write:\n" for key in read_scp(dump / "text"))
    )
    with pytest.raises(ValueError, match="prompt: shards do not hold prompts"):
        write_data_dir(dump, tmp_path / "shar")
