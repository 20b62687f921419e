"""Files that are whole, tables from any editor, a file name for every key."""

import hashlib
import socket
import struct
import subprocess
import sys
import threading

import pytest
import torch

from espnet_dus.io import (
    atomic_path,
    check_names,
    file_name,
    locked,
    not_empty,
    progress,
    read_scp,
    read_yaml,
    tensors_sha256,
    write_text,
)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with pytest.raises(KeyError):
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyError
    assert list(path.parent.iterdir()) == []
    write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()


def test_writers_on_several_hosts_never_share_a_temporary_file(tmp_path):
    # one process id, as the first process of two containers has
    with atomic_path(tmp_path / "a.pth") as one, atomic_path(tmp_path / "a.pth") as two:
        assert one != two and one.suffix == ".pth"
        assert socket.gethostname()[:64] in one.name
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a.pth").read_text() == "one"  # renamed last


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("x" * 251 + ".txt")
    write_text(path, "text")
    assert path.read_text() == "text"


KEYS = [
    "a/b",
    "a_b",
    "a%2Fb",
    "a//b",
    "a:b",
    "..",
    "%2E.",
    ".hidden",
    "京" * 29,
    "京" * 200,
    "京" * 199 + "都",
    "x" * 251,
    "x" * 250 + "y",
    "x" * 255,
    "x" * 4000,
    "a\x01b",
    "a\udcffb",
    "spk1-utt.2",
]


def test_every_key_has_a_file_of_its_own_in_the_directory(tmp_path):
    for key in KEYS:
        with (tmp_path / file_name(key, ".srt")).open("x") as file:
            file.write(ascii(key))
    assert len(list(tmp_path.iterdir())) == len(KEYS)
    for key in KEYS:
        assert (tmp_path / file_name(key, ".srt")).read_text() == ascii(key)


def test_a_readable_key_stays_readable():
    assert file_name("spk1-utt.2", ".flac") == "spk1-utt.2.flac"
    assert file_name("京都-1") == "京都-1"
    assert file_name("book/ch 1") == "book%2Fch 1"


def test_a_table_of_a_windows_editor_has_no_mark_or_return_in_it(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfu1 yes  no\r\nu2\r\n\r\n u3 \xc3\xa9\r\n")
    assert read_scp(path) == {"u1": "yes  no", "u2": "", "u3": "é"}
    path.write_bytes(2 * path.read_bytes().replace(b"u2\r\n", b""))  # joined
    with pytest.raises(ValueError, match="text:4: the key u1 occurs twice"):
        read_scp(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a x\nb y\na z\n", r":3: the key a occurs twice"),
        (b"a x\n\nb \xff\n", r":3: not UTF-8"),
        (b"a x\rb y\rc z\r", r":1: a carriage return inside the line"),
        (b"a x\nb\n", r":2: b: expected a value after the key, got none"),
    ],
)
def test_a_fault_of_a_table_is_named_with_file_and_line(tmp_path, content, message):
    (tmp_path / "wav.scp").write_bytes(content)
    with pytest.raises(ValueError, match=f"wav.scp{message}") as error:
        read_scp(tmp_path / "wav.scp", not_empty)
    assert "\n" not in str(error.value)


def test_a_directory_is_written_by_one_process_at_a_time(tmp_path, caplog):
    ended = []

    def other():
        with locked(tmp_path / "new"):
            ended.append("other")

    with locked(tmp_path / "new"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.3)
        ended.append("first")
    thread.join()
    assert ended == ["first", "other"]
    assert caplog.messages == [
        f"another process writes to {tmp_path}/new: waiting for its end"
    ]


def test_progress_is_written_as_lines_and_counts(capsys):
    with progress(total=7, what="dump/x") as bar:
        bar.update(4)
        bar.set_postfix_str("1 bad", refresh=False)
        bar.update(3)
    out, err = capsys.readouterr()
    last = [line for line in err.splitlines() if line.strip()][-1]
    assert out == "" and last.startswith("dump/x: 7 of 7 utterances, 1 bad, ")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_name_that_the_locale_cannot_print_does_not_stop_a_command(encoding):
    code = (
        "from espnet_dus.bin import user_errors\n"
        "def main(cmd):\n"
        "    print('京都 done')\n"
        "    raise ValueError('京都: not found')\n"
        "user_errors(main)()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "\\u4eac\\u90fd done\n"
    assert done.stderr == "error: \\u4eac\\u90fd: not found\n"
    assert done.returncode == 1


# -- digests and option names ----------------------------------------------------------


def test_the_digest_of_tensors_covers_name_type_shape_and_values():
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    values = struct.pack("<4f", 1, 2, 3, 4)
    # as checkpoints and packs have recorded it from the first version on
    expected = hashlib.sha256(b"w torch.float32 (2, 2)\n" + values).hexdigest()
    assert tensors_sha256([("w", weight)]) == expected
    assert tensors_sha256([("w", weight.T.contiguous().T)]) == expected
    for other in (weight.flatten(), weight.double(), weight + 1):
        assert tensors_sha256([("w", other)]) != expected
    assert tensors_sha256([("v", weight)]) != expected


def test_an_unknown_option_is_an_error_that_names_the_known_ones():
    check_names("conf", {"a": 1}, ["a", "b"])
    with pytest.raises(ValueError, match=r"conf: unknown option\(s\) 3, c; .* a, b"):
        check_names("conf", {"a": 1, "c": 2, 3: 4}, ["a", "b"])


def test_a_yaml_file_that_cannot_be_read_is_named_with_its_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: 1\nb:\n  - 2\n")
    assert read_yaml(path) == {"a": 1, "b": [2]}
    for content, message in (
        (b"a: 1\n b: 2\n", "config.yaml:2: not YAML: mapping values are not allowed"),
        (b"a: [1\n", "config.yaml:2: not YAML: expected ',' or ']'"),
        (b"a: \x00", "config.yaml: not YAML: unacceptable character"),
        (b"a: \xff", "config.yaml: not YAML: .* can't decode byte 0xff"),
        (b"", "config.yaml: expected keys with values, got None"),
        (b"- a", r"config.yaml: expected keys with values, got \['a'\]"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_yaml(path)
