"""What a pack holds, and that it says so when it cannot be made."""

import stat
import zipfile

import pytest
import torch
import yaml

from espnet_dus.app import cli
from espnet_dus.model.checkpoint import IDENTITY_KEY
from espnet_dus.zoo.pack import check_archive, pack

MODEL = "exp/dus_tiny/valid.acc.ave.pth"
CONFIG = "exp/dus_tiny/config.yaml"


def read(path, member):
    with zipfile.ZipFile(path) as archive:
        return archive.read(member)


def test_a_pack_holds_what_decoding_needs_and_no_weights_of_the_base_lm(packed):
    with zipfile.ZipFile(packed) as archive:
        files = [n for n in archive.namelist() if not n.endswith("/")]
    assert files[0] == "meta.yaml" and files[-1] == MODEL
    assert set(files) == {
        *("meta.yaml", CONFIG, MODEL, "exp/dus_tiny/RESULTS.md"),
        "exp/dus_tiny/images/loss.png",
        *("data/ctc_units/units.json", "data/feats_stats.npz"),
        *("data/base_lm/config.json", "data/base_lm/generation_config.json"),
        *("data/base_lm/tokenizer.json", "data/base_lm/tokenizer_config.json"),
        "data/base_lm/identity.json",
    }


def test_the_checkpoint_in_it_holds_the_trained_parameters_only(packed, tiny_model):
    with zipfile.ZipFile(packed) as archive, archive.open(MODEL) as file:
        names = set(torch.load(file))
    model = tiny_model()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert frozen and not names & frozen
    assert trained <= names
    assert IDENTITY_KEY in names


def test_meta_names_the_files_and_the_base_lm(packed):
    meta = yaml.safe_load(read(packed, "meta.yaml"))
    assert meta["files"] == {"asr_model_file": MODEL}
    assert meta["yaml_files"] == {"asr_train_config": CONFIG}
    assert meta["base_lm"]["name"] == "tiny-random-llama"
    assert len(meta["base_lm"]["sha256"]) == 64
    assert meta["base_lm"]["source"] == "tiny-random-llama"


def test_no_path_in_it_leads_outside(packed, experiment):
    config = read(packed, CONFIG).decode()
    assert str(experiment.root) not in config and "big_disk" not in config
    assert str(experiment.base_lm) not in config
    config = yaml.safe_load(config)
    assert config["base_lm"] == "data/base_lm"
    assert config["ctc_units"] == "data/ctc_units"
    assert config["normalize_conf"] == {"stats_file": "data/feats_stats.npz"}
    assert config["output_dir"] is None
    assert config["train_data_path_and_name_and_type"] == []
    for member in zipfile.ZipFile(packed).namelist():
        assert not member.startswith(("/", "..")), member


def test_the_command_packs_and_names_where_the_base_lm_is_published(
    in_recipe, tmp_path
):
    out = tmp_path / "x" / "a.zip"
    options = ["--asr_train_config", CONFIG, "--asr_model_file", MODEL]
    cli.main(["pack", *options, "--outpath", str(out), "--base_lm_source", "me/lm"])
    assert check_archive(out)["base_lm"]["source"] == "me/lm"
    assert [p.name for p in out.parent.iterdir()] == ["a.zip"]


def test_a_model_trained_from_shards_is_packed_without_them(in_recipe, tmp_path):
    config = yaml.safe_load(open(CONFIG))
    (in_recipe.exp / "mix.yaml").write_text("{}")
    config["streaming_conf"] = {"shards": "exp/dus_tiny/mix.yaml", "buffer_size": 8}
    directory = tmp_path / "dus_tiny"
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    pack(directory / "config.yaml", MODEL, tmp_path / "a.zip")
    assert yaml.safe_load(read(tmp_path / "a.zip", CONFIG))["streaming_conf"] == {}


def test_the_configuration_of_an_earlier_version_is_packed(in_recipe, tmp_path):
    config = yaml.safe_load(open(CONFIG))
    config.update(bpemodel=config["base_lm"], token_list="data/token_list", g2p=None)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    pack(tmp_path / "config.yaml", MODEL, tmp_path / "a.zip")
    member = f"exp/{tmp_path.name}/config.yaml"
    packed = yaml.safe_load(read(tmp_path / "a.zip", member))
    assert packed["base_lm"] == "data/base_lm" and packed["bpemodel"] is None


def test_what_does_not_fit_is_an_error_and_no_file_appears(in_recipe, tmp_path):
    out = tmp_path / "a.zip"

    def fails(message, config=CONFIG, model=MODEL, path=out):
        with pytest.raises(ValueError, match=message):
            pack(config, model, path)
        assert not out.exists()

    fails("ends in .zip", path=tmp_path / "a.tar")
    fails("exp/no.pth: no such checkpoint", model="exp/no.pth")
    fails("exp/no.yaml: no such file; train first", config="exp/no.yaml")
    torch.save({"model": {}}, tmp_path / "checkpoint.pth")
    fails("does not say which base LM", model=tmp_path / "checkpoint.pth")

    config = yaml.safe_load(open(CONFIG))
    (tmp_path / "exp").mkdir()
    for change, message in (
        ({"cleaner": str(tmp_path / "exp")}, "the option cleaner names .*/exp, a file"),
        ({"ctc_units": "data/gone"}, "ctc_units: data/gone does not exist"),
    ):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**config, **change}))
        fails(message, config=path)


# -- tampered archives -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil", "c:x"]
)
def test_a_member_that_leads_outside_is_refused(tampered, name):
    with pytest.raises(ValueError, match="would be written outside the directory"):
        check_archive(tampered(**{name: b"evil"}))


def test_a_symbolic_link_is_refused(packed, tampered):
    path = tampered()
    link = zipfile.ZipInfo("data/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="'data/link' is a symbolic link"):
        check_archive(path)


def test_an_archive_cut_short_or_damaged_is_refused(packed, tmp_path):
    content = packed.read_bytes()
    path = tmp_path / "cut.zip"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a whole zip archive"):
        check_archive(path)
    place = content.index(b"a picture")
    path.write_bytes(content[:place] + b"A" + content[place + 1 :])
    with pytest.raises(ValueError, match="damaged at exp/dus_tiny/images/loss.png"):
        check_archive(path)


@pytest.mark.parametrize(
    "member, message",
    [
        (MODEL, "the file exp/dus_tiny/valid.acc.ave.pth is missing from the pack"),
        (CONFIG, "the file exp/dus_tiny/config.yaml is missing from the pack"),
        ("data/base_lm/config.json", "the file data/base_lm/config.json is missing"),
        ("meta.yaml", "no meta.yaml at its top, so it is not a model's pack"),
    ],
)
def test_a_missing_file_is_named(tampered, member, message):
    with pytest.raises(ValueError, match=message):
        check_archive(tampered(**{member: None}))


@pytest.mark.parametrize("place", ["/etc/passwd", "../../.ssh/id", 3])
def test_meta_that_names_a_file_outside_is_refused(tampered, place):
    def change(content):
        meta = yaml.safe_load(content)
        meta["files"]["asr_model_file"] = place
        return yaml.safe_dump(meta)

    with pytest.raises(ValueError, match=f"the file {place} is missing from the pack"):
        check_archive(tampered(**{"meta.yaml": change}))


def test_a_pack_inside_a_folder_of_the_archive_is_refused_with_advice(packed, tmp_path):
    path = tmp_path / "folder.zip"
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(f"model/{name}", old.read(name))
    with pytest.raises(ValueError, match="there is model/meta.yaml: zip the content"):
        check_archive(path)


def test_the_pack_of_something_else_is_refused(tampered):
    for meta in (
        "3",
        "a: [",
        "files: {}",
        "files: {asr_model_file: x}\nyaml_files: {}",
    ):
        with pytest.raises(ValueError, match="expected a pack made by espnet-dus pack"):
            check_archive(tampered(**{"meta.yaml": lambda _: meta}))
