"""The documentation is up to date, and everything it names exists."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from espnet_dus.app import cli
from espnet_dus.bin import Commands, data, evaluation, training, zoo
from espnet_dus.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("doc/*.md"),
        *ROOT.glob("egs2/README.md"),
        *ROOT.glob("egs2/*/dus1/README.md"),
    ]
)
DUS_SH = (ROOT / "egs2/TEMPLATE/dus1/dus.sh").read_text(encoding="utf-8")
# Options of other programs: tar, slurm, lm_eval, and the help of all.
NOT_OURS = {"transform", "signal", "wrap", "model_args", "help"}
# What running things makes.
MADE = ("tools/venv", "tools/base_lm")


def name(path):
    return str(path.relative_to(ROOT))


def text_of(path):
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tools():
    """The modules in tools/, which import each other by name."""
    sys.path.insert(0, str(ROOT / "tools"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "tools"))


# -- what is generated -----------------------------------------------------------------


def test_generated_pages_are_up_to_date(tools):
    for path, text in tools("make_docs").pages().items():
        assert text_of(path) == text, f"run: python tools/make_docs.py ({path})"


def test_options_page_has_the_options_of_dus_sh():
    page = text_of(ROOT / "doc/options.md")
    listed = re.findall(r"^\| `--(\w+)` \|", page, re.MULTILINE)
    assert listed == dus_sh_options()
    assert "| `--fs` | `16k` | Sampling rate. |" in page


def test_configuration_page_has_every_key_of_every_yaml_file(tools):
    recipes = tools("keys_of_recipes")
    page = text_of(ROOT / "doc/configuration.md")
    listed = set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))
    paths = recipes.configurations("base*.yaml", "train_*.yaml", "decode_*.yaml")
    assert len(paths) > 30
    for path in paths:
        for block, value in load_config(path).items():
            keys = [block]
            if isinstance(value, dict) or block.endswith("_conf"):
                keys = [f"{block}.{key}" for key in value or ()]  # null: none
            assert not set(keys) - listed, path


def test_a_key_is_described_from_its_comment(tools, tmp_path):
    recipes = tools("keys_of_recipes")
    (tmp_path / "train_x.yaml").write_text(
        "# A file.\ndefaults:\n    - base.yaml\n\n# -- training ---\n"
        "# Which one. (default null) Change it.\nscheduler: warmuplr\n"
        "scheduler_conf:\n    # How long\n    # (default 3 (or 4))\n    steps: 5\n"
        "max_epoch: 3\n"
    )
    assert list(recipes.read_yaml_keys(tmp_path / "train_x.yaml")) == [
        recipes.Key("scheduler", "Which one. Change it.", "null"),
        recipes.Key("scheduler_conf.steps", "How long", "3 (or 4)", "warmuplr"),
    ]


# -- what is named ---------------------------------------------------------------------


def anchors(path):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in words}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_relative_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def dus_sh_options():
    block = DUS_SH.partition("# Options:")[2].partition("# End of options")[0]
    return re.findall(r"^([a-z0-9_]+)=.*  # ", block, re.MULTILINE)


def compare_sh_options():
    script = text_of(ROOT / "egs2/TEMPLATE/dus1/compare.sh")
    return re.findall(r"^  --([a-z_]+)", script, re.MULTILINE)


@functools.lru_cache
def all_options():
    """Return the options of every command, and the keys that a YAML file may have."""
    known = set(dus_sh_options()) | NOT_OURS
    known |= set(compare_sh_options())
    espnet = Path(importlib.util.find_spec("espnet2").origin).parent
    sources = [
        *ROOT.glob("espnet_dus/**/*.py"),
        *ROOT.glob("tools/*.py"),
        *ROOT.glob("tools/benchmarks/*.py"),
    ]
    for path in [*sources, espnet / "tasks/abs_task.py"]:
        known |= set(re.findall(r'"--([a-z0-9_-]+)"', text_of(path)))
    of_functions = Commands("espnet-dus", "Commands whose options are derived.")
    for module in (cli, data, evaluation, training, zoo):
        module.add_commands(of_functions)
    for name, add_options in of_functions.prepare.items():
        add_options()
        options = of_functions.parsers.choices[name]._option_string_actions
        known |= {option.removeprefix("--") for option in options}
    keys = re.findall(
        r"^\| `([\w.]+)` \|", text_of(ROOT / "doc/configuration.md"), re.M
    )
    known |= {part for key in keys for part in key.split(".")}
    # subtitles and JSON of espnet-dus transcribe: their names are made in a loop
    return known | {"srt", "json"}


def commands(text):
    """Return the lines of a page, joined where they are continued."""
    return text.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_options_exist(path):
    known, of_recipe = all_options(), set(dus_sh_options()) | {"help"}
    for line in commands(text_of(path)):
        named = re.findall(r"(?<![\w-])--([a-z][a-z0-9_-]*)", line)
        named = {option.replace("-", "_") for option in named}
        assert not named - {o.replace("-", "_") for o in known}, line
        if re.match(r"\s*(\S*/run\.sh|\$run) ", line):
            # a value in quotes holds a command's options, and may continue below
            own = re.sub(r'"[^"]*("|$)', "", line.partition(" # ")[0])
            own = re.findall(r"(?<![\w-])--([a-z][a-z0-9_-]*)", own)
            assert not {o.replace("-", "_") for o in own} - of_recipe, line


def is_there(dotted):
    """Return whether a dotted name is a module or is defined in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        rest = parts[length:]
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                defined = rf'^(def|class) {rest[0]}\b|"{rest[0]}"' if rest else ""
                return re.search(defined, text_of(file), re.M) is not None
    return False


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_modules_exist(path):
    for dotted in re.findall(r"\bespnet_dus(?:\.\w+)+", text_of(path)):
        assert is_there(dotted), dotted


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_files_of_this_checkout_exist(path):
    for span in re.findall(
        r"`((?:espnet_dus|egs2|tools|test|doc)/[^`\s]*)`", text_of(path)
    ):
        if not span.startswith(MADE) and not re.search(r"[<$]|mycorpus", span):
            assert list(ROOT.glob(span.rstrip("/"))), span


# -- single pages ----------------------------------------------------------------------


def test_every_stage_and_command_is_described():
    page = text_of(ROOT / "doc/stages.md")
    stages = re.search(r"^stages=\((.*?)\) # 10", DUS_SH, re.M | re.S)[1]
    stages = re.sub(r"#.*", "", stages).split()
    assert len(stages) == 15
    called = re.findall(r"(?:^| )dus(?:_alone \S+)? ([a-z_]+) ", DUS_SH)
    called = {*called, "dus_train", "dus_inference"}
    for wanted in {*stages, *called}:
        assert f"`{wanted}`" in page, wanted
    for option in re.findall(r"`--(\w+)[` ]", page):
        assert option in [*dus_sh_options(), *compare_sh_options(), "help"], option


def messages():
    """Yield the messages of the package, with … for the values in them."""
    for path in ROOT.glob("espnet_dus/**/*.py"):
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                ]
                yield "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    yield text_of(ROOT / "tools/setup.sh")


def test_the_messages_of_the_questions_are_real():
    quoted = re.findall(r"^### `(.*)`$", text_of(ROOT / "doc/faq.md"), re.MULTILINE)
    assert len(quoted) > 20
    known = list(messages())
    for quote in quoted:
        parts = [re.escape(part) for part in quote.split("…")]
        pattern = re.compile(".*".join(parts), re.DOTALL)
        assert any(pattern.search(message) for message in known), quote


def test_every_recipe_has_a_row():
    table = text_of(ROOT / "egs2/README.md")
    for recipe in ROOT.glob("egs2/*/dus1"):
        assert f"[{recipe.parent.name}](" in table, recipe


def test_the_picture_is_well_formed_and_knows_the_dark():
    picture = ROOT / "doc/architecture.svg"
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    assert "prefers-color-scheme: dark" in text_of(picture)


# -- the language ----------------------------------------------------------------------

CONTORTED = (
    r"\bso many\b|\b(Added|Counted) are\b|\bCounted is\b|\bgoes on where\b"
    r"|\bstands? for ever\b|\bTell whether\b|\"\"\"Give "
    r"|\banew\b|\b[Ll]ikewise\b|\bby heart\b|\bwhoever\b|\bgoes on (with|after)\b"
)


def test_sentences_begin_with_their_subject_and_use_standard_words():
    folders = ("espnet_dus", "test", "tools", "doc", "egs2", "README.md")
    command = ["git", "grep", "-nE", CONTORTED.replace(r"\"", '"'), "--", *folders]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    own, results = "test/tools/test_docs.py:", "egs2/an4/dus1/comparison.md:"
    lines = found.stdout.splitlines()
    assert [line for line in lines if not line.startswith((own, results))] == []
