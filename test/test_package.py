"""What `import espnet_dus` provides, and the order of imports inside the package."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest


@pytest.mark.parametrize("names", ["upscale, Speech2Text", "Speech2Text, upscale"])
def test_public_names_are_there_in_any_order_of_import(names):
    # in a process of its own: here, other tests have imported the modules behind them
    code = f"from espnet_dus import {names}; assert callable(upscale), upscale"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_name_is_an_attribute_error():
    import espnet_dus

    with pytest.raises(AttributeError, match="no attribute 'downscale'"):
        espnet_dus.downscale


@pytest.mark.parametrize("writable", ["environment", "home", None])
def test_numba_has_a_cache_where_environment_and_home_are_read_only(writable):
    code = (
        "import os, sys\n"
        f"home, writable = os.path.expanduser('~'), {writable!r}\n"
        "os.access = lambda path, _: writable == ('home' if path == home else "
        "'environment')\n"
        "import espnet_dus\n"
        "place = os.environ.get('NUMBA_CACHE_DIR')\n"
        "print(place, place and os.stat(place).st_mode & 0o777)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    place, mode = done.stdout.split()
    if writable:
        assert place == "None"
    else:
        assert int(mode) == 0o700 and not os.path.exists(place), done.stderr


# -- the walk of the data --------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "espnet_dus"
# Subpackages import only from lines above their own.
WALK = (
    {"io"},
    {"data"},
    {"model"},
    {"training", "hf", "config"},
    {"task"},
    {"evaluation", "zoo"},
    {"search"},
    {"bin"},
    {"app"},
    {"__main__"},
)


def imports():
    """Return the modules of the package that each of its modules imports, by name.

    Imports inside functions count; `espnet_dus` itself, with the version and lazy
    public names, does not.
    """
    files = {
        path: path.relative_to(ROOT).with_suffix("") for path in PACKAGE.rglob("*.py")
    }
    names = {
        path: ".".join(part for part in relative.parts if part != "__init__")
        for path, relative in files.items()
    }
    known = set(names.values())
    found = {}
    for path, name in names.items():
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= (inside & known) or {node.module}
        found[name] = (wanted & known) - {"espnet_dus"}
    del found["espnet_dus"]
    return found


def test_no_import_runs_against_the_walk_of_the_data():
    level = {name: n for n, names in enumerate(WALK) for name in names}
    against = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        for own, theirs in [(name.split(".")[1], other.split(".")[1])]
        if own != theirs and level[theirs] >= level[own]
    ]
    assert against == []


def test_no_modules_import_each_other_in_a_circle():
    modules = list(TopologicalSorter(imports()).static_order())  # or a CycleError
    assert "espnet_dus.io" in modules and "espnet_dus.app.cli" in modules
