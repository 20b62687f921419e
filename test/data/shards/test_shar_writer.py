"""Shards are whole or absent, and written once."""

import pytest

from espnet_dus.data.shards import shar_writer
from espnet_dus.data.shards.from_data_dir import write_data_dir
from espnet_dus.data.shards.shar import read_info


def snapshot(path):
    return {file.name: file.stat().st_mtime_ns for file in path.rglob("*.*")}


def test_a_stopped_run_goes_on_with_the_shard_that_is_missing(
    dump, durations, read_back, tmp_path, monkeypatch
):
    out, written, real = tmp_path / "shar", [], shar_writer._write_shard

    def stopped(block, **options):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(block[0])
        return real(block, **options)

    monkeypatch.setattr(shar_writer, "_write_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_data_dir(dump, out, shard_size=2)
    assert not out.exists()  # nobody takes it for finished
    partial = tmp_path / ".shar.partial"
    (partial / "shards" / ".recording.000002.9.tmp.tar").touch()  # of a killed process
    before = snapshot(partial / "shards")
    monkeypatch.setattr(shar_writer, "_write_shard", real)
    write_data_dir(dump, out, shard_size=2)
    after = snapshot(out / "shards")
    kept = {name for name in after if before.get(name) == after[name]}
    assert len(kept) == 4 and len(after) == 8 and read_info(out).num_utterances == 7
    assert sorted(read_back(out)) == sorted(durations)


def test_the_same_is_not_done_twice_and_what_has_changed_is(dump, read_back, tmp_path):
    out = tmp_path / "shar"
    write_data_dir(dump, out, shard_size=4)
    before = snapshot(out)
    write_data_dir(dump, out, shard_size=4)
    assert snapshot(out) == before
    text = (dump / "text").read_text()
    (dump / "text").write_text(text.replace("WORDS OF a", "OTHER WORDS"))
    write_data_dir(dump, out, shard_size=4)
    assert read_back(out)["a"].supervisions[0].text == "OTHER WORDS"
