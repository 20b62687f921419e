"""A directory of shards is read, or refused if it is none or incomplete."""

import pytest

from espnet_dus.app import cli
from espnet_dus.data.ctc_units import CTCUnits
from espnet_dus.data.shards.from_data_dir import write_data_dir
from espnet_dus.data.shards.shar import list_shards


@pytest.mark.parametrize("weights", [False, True])
def test_ctc_units_come_from_the_transcripts_of_all_shards(
    dump, durations, tmp_path, tiny_base_lm_dir, weights
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
    assert units[2:] == sorted({*"QZ", *"WORDSOF", *durations, "<space>"})


def test_what_is_no_directory_of_shards_is_an_error(dump, tmp_path):
    with pytest.raises(ValueError, match="info.json: no such file"):
        list_shards(dump)
    write_data_dir(dump, tmp_path / "shar")
    (tmp_path / "shar/shards/cuts.000000.jsonl.gz").unlink()
    with pytest.raises(ValueError, match="0 shards, info.json says 1"):
        list_shards(tmp_path / "shar")
