"""The recipes, linked into a directory laid out like an ESPnet checkout, run there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns("data", "dump", "exp", "downloads")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A copy of this checkout whose environment is the one that runs the tests."""
    root = tmp_path_factory.mktemp("ours")
    shutil.copytree(ROOT / "egs2", root / "egs2", symlinks=True, ignore=NOT_COPIED)
    (root / "espnet_dus").mkdir()
    shutil.copy(ROOT / "espnet_dus" / "__init__.py", root / "espnet_dus")
    (root / "tools" / "venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "port_to_espnet.sh", root / "tools")
    (root / "tools" / "setup.sh").write_text("#!/bin/sh\n")
    (root / "tools" / "setup.sh").chmod(0o755)
    python = Path(sys.executable).parent
    (root / "tools/venv/bin/activate").write_text(f"PATH={python}:$PATH\n")
    return root


@pytest.fixture
def espnet(tmp_path):
    root = tmp_path / "espnet checkout"
    for part in ("espnet2", "egs2/TEMPLATE/asr1", "egs2/an4/asr1"):
        (root / part).mkdir(parents=True)
    return root


def port(ours, *arguments):
    return subprocess.run(
        [ours / "tools" / "port_to_espnet.sh", *arguments],
        capture_output=True,
        text=True,
    )


def links(espnet):
    return {
        str(path.relative_to(espnet)): path.readlink()
        for path in espnet.rglob("*")
        if path.is_symlink()
    }


def test_every_recipe_and_the_template_are_linked_and_once(ours, espnet):
    wanted = {
        str(path.relative_to(ours)): path for path in (ours / "egs2").glob("*/dus1")
    }
    assert {"egs2/TEMPLATE/dus1", "egs2/an4/dus1", "egs2/mini_an4/dus1"} <= set(wanted)
    for _ in range(2):  # the second time changes nothing
        assert port(ours, espnet).returncode == 0
        assert links(espnet) == wanted
    assert (espnet / "egs2/an4/asr1").is_dir()


def test_a_recipe_started_there_finds_the_package(ours, espnet):
    port(ours, espnet)
    environment = {k: v for k, v in os.environ.items() if k != "DUS_VENV"}
    done = subprocess.run(
        [
            "bash",
            "-euc",
            'cd "$1/egs2/mini_an4/dus1"; . ./path.sh; echo "$MAIN_ROOT"; '
            'cd "$1"; python3 -c "import espnet_dus; print(espnet_dus.__file__)"',
            "bash",
            espnet,
        ],
        env={**environment, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == [str(ours), f"{ours}/espnet_dus/__init__.py"]
    help_text = subprocess.run(
        [espnet / "egs2/an4/dus1/run.sh", "--help"], capture_output=True, text=True
    )
    assert "--dus_config" in help_text.stdout


def test_a_link_that_leads_nowhere_is_renewed(ours, espnet, tmp_path):
    (espnet / "egs2/an4/dus1").symlink_to(tmp_path / "moved away")
    assert port(ours, espnet).returncode == 0
    assert (espnet / "egs2/an4/dus1").readlink() == ours / "egs2/an4/dus1"


def test_what_is_no_espnet_checkout_is_refused(ours, espnet, tmp_path):
    for arguments, message in (
        ([], "expected one argument"),
        ([tmp_path / "nothing"], "nothing: no such directory"),
        ([tmp_path], "is not an ESPnet checkout: espnet2 is missing"),
        ([ours], "is not an ESPnet checkout: espnet2 is missing"),
    ):
        done = port(ours, *arguments)
        assert done.returncode == 1 and message in done.stderr
    assert links(tmp_path) == {}


def test_a_recipe_that_stands_there_is_not_replaced(ours, espnet):
    other = espnet / "egs2/mini_an4/dus1"
    other.mkdir(parents=True)
    done = port(ours, espnet)
    assert done.returncode == 1
    assert f"{other} exists and is not a link to {ours}" in done.stderr
    assert links(espnet) == {}
