"""Options and keys as the recipes describe them: dus.sh, db.sh, YAML files."""

import re
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Tuple

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "egs2/TEMPLATE/dus1"

# Where a key of several configurations is described best: the first of these wins.
RECIPES = ("TEMPLATE", "an4", "mini_an4", "librispeech")


class Key(NamedTuple):
    """A key or option: name, description, default, and the choice it belongs to."""

    name: str
    what: str
    default: str
    only_with: str = ""


# -- dus.sh and db.sh ------------------------------------------------------------------


def shell_options() -> Iterator[Tuple[str, List[Key]]]:
    """Yield the options of dus.sh by heading."""
    text = (TEMPLATE / "dus.sh").read_text(encoding="utf-8")
    text = text.partition("# Options:")[2].partition("# End of options")[0]
    heading, keys = "", []
    for line in text.splitlines()[1:]:
        if found := re.fullmatch(r"# ([^:.]+)", line):
            if keys:
                yield heading, keys
            heading, keys = found[1], []
        elif found := re.fullmatch(r"([a-z0-9_]+)=(.*?)  # (.*)", line):
            name, default, what = found.groups()
            if "$" in default:
                default = "by the machine"
            elif default:
                default = f"`{default}`"
            keys.append(Key(f"--{name}", what, default))
    yield heading, keys


def corpus_variables() -> Iterator[Key]:
    """Yield the variables of db.sh, which name the places of corpora."""
    comment: List[str] = []
    for line in (TEMPLATE / "db.sh").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif found := re.match(
            r'([A-Z0-9_]+)="?\$\{\1:-([^}]*)\}"?(?: *# (.*))?$', line
        ):
            default = f"`{found[2]}`" if found[2] else ""
            yield Key(found[1], found[3] or " ".join(comment), default)
        else:
            comment = []


# -- YAML files ------------------------------------------------------------------------


def configurations(*patterns: str) -> List[Path]:
    """List the YAML files of all recipes by pattern, those described best first."""

    def order(path: Path):
        recipe = path.relative_to(ROOT / "egs2").parts[0]
        known = RECIPES.index(recipe) if recipe in RECIPES else len(RECIPES)
        return known, str(path)

    return [
        path
        for pattern in patterns
        for path in sorted((ROOT / "egs2").glob(f"*/dus1/conf/**/{pattern}"), key=order)
        if not path.is_symlink()
    ]


def read_yaml_keys(path: Path) -> Iterator[Key]:
    """Read the commented keys of a YAML file; `a_conf.b` is key b of block a_conf."""
    block, scheduler, comment = "", "", []
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match(r"\s*#(?! --)", line):
            comment.append(line.strip().lstrip("# "))
            continue
        if found := re.match(r"( *)([a-z0-9_]+):\s*(.*)$", line):
            indent, name, value = found.groups()
            block = block if indent else name
            scheduler = value if name == "scheduler" else scheduler
            is_key = indent or not name.endswith(("_conf", "defaults"))
            if comment and is_key:
                key = _describe(f"{block}.{name}" if indent else name, comment)
                only = scheduler if block == "scheduler_conf" else ""
                yield key._replace(only_with=only)
        comment = []


def _describe(name: str, comment: List[str]) -> Key:
    """Take the default out of a comment `What it is. (default 3) When to change.`."""
    text = " ".join(comment)
    default = re.search(r"\(default:? ([^()]*(?:\([^()]*\)[^()]*)*)\)", text)
    if default is None:
        return Key(name, text, "")
    what = text.replace(default[0], "").replace("  ", " ").strip()
    return Key(name, what, default[1])


def yaml_keys(paths: Iterable[Path]) -> List[Key]:
    """Merge the keys of YAML files: each once, described as in the first file."""
    found: Dict[str, Key] = {}
    for path in paths:
        for key in read_yaml_keys(path):
            found.setdefault(key.name, key)
    return list(found.values())
