import pytest

from espnet_dus.data.data_dir import DataDir, Utterance
from espnet_dus.io import read_scp


def write(path, **tables):
    path.mkdir(parents=True, exist_ok=True)
    for name, lines in tables.items():
        (path / name.replace("_scp", ".scp")).write_text(lines)
    return path


@pytest.fixture
def data(tmp_path):
    return write(
        tmp_path / "data",
        wav_scp="b b.wav\na a.wav\n",
        text="b TWO  WORDS\na ONE\n",
        utt2spk="b t\na s\n",
    )


def test_unsorted_tables_are_sorted_and_spk2utt_derived(data, tmp_path):
    read = DataDir.read(data)
    read.validate()
    read.write(tmp_path / "out")
    assert (tmp_path / "out/text").read_text() == "a ONE\nb TWO  WORDS\n"
    assert (tmp_path / "out/spk2utt").read_text() == "s a\nt b\n"
    assert (tmp_path / "out/wav.scp").read_text() == "a a.wav\nb b.wav\n"


@pytest.mark.parametrize(
    "tables, message",
    [
        (dict(text="a X\n"), "utterance b is in .*wav.scp, not in text"),
        (dict(wav_scp="a a.wav\n"), "utterance b is in .*text, not in wav.scp"),
        (dict(utt2spk="a s\nb s\nc s\n"), "utterance c is in .*utt2spk, not in text"),
        (dict(text="a X\nb\n"), "utterance b has no transcript in .*text"),
        (dict(utt2spk="a s\nb\n"), "utt2spk:2: b: expected one speaker, got ''"),
        (dict(utt2spk="a s t\nb s\n"), "utt2spk:1: a: expected one speaker, got 's t'"),
        (dict(wav_scp="a a.wav\n\nb\n"), "wav.scp:3: b: expected a value after the"),
        (dict(wav_scp="a x\n", feats_scp="a x\nb y\n"), "utterance b is .* wav.scp"),
        (dict(feats_scp="a\nb y\n"), "feats.scp:1: a: expected a value after the"),
        (dict(segments="a r 0 1\nb a 0 1\n"), "utterance a .* recording r is not in"),
        (dict(segments="a a 2 1\nb b 0 1\n"), "segments:1: a: .* < end, got 'a 2 1'"),
        (dict(segments="a a 0 inf\nb b 0 1\n"), "segments:1: a: .*, got 'a 0 inf'"),
        (dict(segments="a a 0 1\nb b nan 1\n"), "segments:2: b: .*, got 'b nan 1'"),
        (dict(segments="a a inf -1\nb b 0 1\n"), "segments:1: a: .*, got 'a inf -1'"),
        (dict(segments="a a 0\nb b 0 1\n"), "segments:1: a: .*, got 'a 0'"),
        (dict(utt2speed="a 0\nb 1\n"), "utt2speed:1: a: .* from 0.5 to 2, got '0'"),
        (dict(utt2speed="a 1\nb inf\n"), "utt2speed:2: b: .* from 0.5 to 2, got 'inf'"),
        (dict(utt2num_samples="a 9\nb 1e4\n"), "utt2num_samples:2: b: expected a num"),
        (dict(prompt="a P\n"), "utterance b is in .*text, not in prompt"),
        (dict(prompt="a P\nb Q\nc R\n"), "utterance c is in .*prompt, not in text"),
        (dict(prompt="a\nb Q\n"), "prompt:1: a: expected a value after the key"),
        (dict(text="", wav_scp="", utt2spk=""), "text: no utterances"),
    ],
)
def test_a_fault_is_named_with_utterance_and_file(data, tables, message):
    write(data, **tables)
    with pytest.raises(ValueError, match=message):
        DataDir.read(data).validate()


def test_faults_are_counted_and_the_first_few_shown(data):
    write(data, wav_scp="".join(f"u{i} x.wav\n" for i in range(40)))
    with pytest.raises(ValueError) as error:
        DataDir.read(data).validate()
    assert ": 42 faults" in str(error.value)
    assert "and 32 more" in str(error.value)


def test_a_key_that_occurs_twice_is_named(data):
    write(data, text="a X\na Y\n")
    with pytest.raises(ValueError, match="text:2: the key a occurs twice"):
        DataDir.read(data)


def test_a_missing_table_or_directory_is_named(data, tmp_path):
    (data / "utt2spk").unlink()
    with pytest.raises(ValueError, match="utt2spk: no such file"):
        DataDir.read(data).validate()
    with pytest.raises(ValueError, match="nowhere: no such data directory"):
        DataDir.read(tmp_path / "nowhere")


def test_a_table_that_is_not_utf8_is_named(data):
    (data / "text").write_bytes(b"a \xff\xfe\n")
    with pytest.raises(ValueError, match="text:1: not UTF-8"):
        DataDir.read(data)


def test_an_empty_transcript_is_accepted_on_wish(data):
    write(data, text="a X\nb\n")
    DataDir.read(data).validate(empty_text=True)


def test_utterances_say_segment_and_speed(data):
    write(data, segments="a b 0.5 1.5\nb b 2 -1\n", utt2speed="a 0.9\nb 1.0\n")
    read = DataDir.read(data)
    read.validate()
    assert read.utterances() == [
        Utterance("a", "b.wav", 0.5, 1.5, 0.9),
        Utterance("b", "b.wav", 2.0, -1.0, 1.0),
    ]


def test_features_alone_are_a_dump_but_no_audio(data):
    (data / "wav.scp").rename(data / "feats.scp")
    read = DataDir.read(data)
    read.validate()
    with pytest.raises(ValueError, match="data/wav.scp: no such file; features of"):
        read.utterances()


def test_a_subset_keeps_the_recordings_of_its_segments_only(data):
    write(data, segments="a b 0 1\nb a 0 1\n")
    subset = DataDir.read(data).subset(["a"])
    assert subset.tables["wav.scp"] == {"b": "b.wav"}
    assert all(
        set(table) == {"a"}
        for name, table in subset.tables.items()
        if name != "wav.scp"
    )


def test_combining_needs_distinct_keys(data):
    read = DataDir.read(data)
    with pytest.raises(ValueError, match="the key [ab] is also in another"):
        DataDir.combine([read, read])
    assert len(DataDir.combine([read, read.prefixed("x-")])) == 4


def test_writing_again_removes_what_the_directory_no_longer_has(data, tmp_path):
    write(data, utt2speed="a 1\nb 1\n", feats_type="raw\n")
    out = tmp_path / "out"
    read = DataDir.read(data)
    read.write(out)
    assert (out / "feats_type").read_text() == "raw\n"
    del read.tables["utt2speed"], read.attributes["feats_type"]
    read.write(out)
    assert not (out / "utt2speed").exists() and not (out / "feats_type").exists()
    assert read_scp(out / "text") == {"a": "ONE", "b": "TWO  WORDS"}


def test_prompts_are_kept_and_directories_with_and_without_do_not_join(data, tmp_path):
    write(data, prompt="b Translate:\na Write:\n")
    read = DataDir.read(data)
    fast = read.prefixed("sp0.9-")
    joined = DataDir.combine([read, fast])
    assert joined.tables["prompt"] == {
        **{"a": "Write:", "b": "Translate:"},
        **{"sp0.9-a": "Write:", "sp0.9-b": "Translate:"},
    }
    joined.write(tmp_path / "out")
    assert read_scp(tmp_path / "out/prompt") == joined.tables["prompt"]
    del fast.tables["prompt"]
    with pytest.raises(ValueError, match="only one of them has prompt"):
        DataDir.combine([read, fast])
