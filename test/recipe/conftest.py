"""Recipes in a checkout of their own, run with the Python of the tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns("data", "dump", "exp", "downloads")


class Checkout:
    """A copy of egs2 whose environment is the one that runs the tests.

    Args:
        root: Where it is made.
    """

    def __init__(self, root: Path):
        self.root = root
        shutil.copytree(ROOT / "egs2", root / "egs2", symlinks=True, ignore=NOT_COPIED)
        setup = root / "tools" / "setup.sh"
        setup.parent.mkdir()
        setup.write_text("#!/bin/sh\n")
        setup.chmod(0o755)
        activate = root / "venv" / "bin" / "activate"
        activate.parent.mkdir(parents=True)
        activate.write_text(f"PATH={Path(sys.executable).parent}:$PATH\n")

    def recipe(self, corpus: str) -> Path:
        """Return a recipe's directory."""
        return self.root / "egs2" / corpus / "dus1"

    def start(self, corpus: str, *options: object) -> subprocess.Popen:
        """Start run.sh of a recipe, from another directory than its own."""
        environment = {**os.environ, "DUS_VENV": str(self.root / "venv")}
        environment.pop("MINI_AN4", None)
        return subprocess.Popen(
            [str(self.recipe(corpus) / "run.sh"), *map(str, options)],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, corpus: str, *options: object, succeeds: bool = True) -> str:
        """Run run.sh of a recipe and return its output."""
        process = self.start(corpus, *options)
        output, _ = process.communicate()
        assert (process.returncode == 0) == succeeds, output[-5000:]
        return output


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A checkout that the recipe tests share."""
    return Checkout(tmp_path_factory.mktemp("checkout"))
