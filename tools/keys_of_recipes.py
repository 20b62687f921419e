"""What the recipes say of their own options and keys: dus.sh, db.sh, YAML files."""

import re
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Tuple

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "egs2/TEMPLATE/dus1"

# Where a key of several configurations is described best: the first of these wins.
RECIPES = ("TEMPLATE", "an4", "mini_an4", "librispeech")


class Key(NamedTuple):
    """A key or option: its name, what it is, its default, and where it counts."""

    name: str
    what: str
    default: str
    only_with: str = ""


# -- dus.sh and db.sh ------------------------------------------------------------------


def shell_options() -> Iterator[Tuple[str, List[Key]]]:
    """Give the options of dus.sh by the headings that they stand under."""
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
    """Give the variables of db.sh, which say where corpora are."""
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


class YamlKey(NamedTuple):
    """A key of a YAML file: under which heading, and in which file, by its choices."""

    heading: str
    key: Key
    choices: Dict[str, str]


def configurations(pattern: str) -> List[Path]:
    """List the YAML files of all recipes, those described best first."""

    def order(path: Path):
        recipe = path.relative_to(ROOT / "egs2").parts[0]
        known = RECIPES.index(recipe) if recipe in RECIPES else len(RECIPES)
        return known, str(path)

    paths = (ROOT / "egs2").glob(f"*/dus1/conf/**/{pattern}")
    return sorted((p for p in paths if not p.is_symlink()), key=order)


def read_yaml_keys(path: Path) -> List[YamlKey]:
    """Read the keys of a commented YAML file; `a_conf.b` is key b of block a_conf.

    One comment may stand above several keys; it is then that of the first. A block
    that is no such `_conf` is a key too.
    """
    heading, block, comment = "", "", []
    choices: Dict[str, str] = {}
    keys: List[YamlKey] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"# -- (.*?) -*$", line):
            heading, comment = found[1][0].upper() + found[1][1:], []
        elif line.lstrip().startswith("#"):
            comment.append(line.strip().lstrip("# "))
        elif found := re.match(r"( *)([a-z0-9_]+):\s*(.*)$", line):
            indent, name, value = found.groups()
            if not indent:
                block = "" if value else name
            choices[name] = value
            if name != block or (comment and not name.endswith("_conf")):
                name = f"{block}.{name}" if indent and block else name
                key = _describe(name, " ".join(comment))
                keys.append(YamlKey(heading, key, choices))
            comment = []
        elif not line.strip():
            comment = []
    return keys


def _describe(name: str, comment: str) -> Key:
    """Take the default out of a comment `What it is. (default 3) When to change.`."""
    default = re.search(r"\(default:? ([^()]*(?:\([^()]*\)[^()]*)*)\)", comment)
    if default is None:
        return Key(name, comment, "")
    what = comment.replace(default[0], "").replace("  ", " ").strip()
    return Key(name, what, default[1])


def _choice(block: str, choices: Dict[str, str]) -> str:
    """Say what a file chose for a block: its kind of layers, its scheduler, ..."""
    selector = block.removesuffix("_conf")
    names = [selector] + ["kind"] * (selector == "adaptation")
    return " ".join(choices[name] for name in names if name in choices)


def yaml_sections(paths: Iterable[Path]) -> Dict[str, List[Key]]:
    """Merge the keys of YAML files: each once, under its heading.

    A key that only files of some choice have (`rank`: those of arm `lora`) says so.
    """
    found: Dict[str, YamlKey] = {}
    used: Dict[str, set] = {}
    all_choices: Dict[str, set] = {}
    for path in paths:
        for entry in read_yaml_keys(path):
            name = entry.key.name
            block = name.partition(".")[0]
            choice = _choice(block, entry.choices)
            used.setdefault(name, set()).add(choice)
            all_choices.setdefault(block, set()).add(choice)
            found.setdefault(name, entry)
    sections: Dict[str, List[Key]] = {}
    for name, entry in found.items():
        block = name.partition(".")[0]
        only_with = ""
        if "." in name and used[name] < all_choices[block]:
            only_with = ", ".join(sorted(used[name]))
        keys = sections.setdefault(entry.heading, [])
        keys.append(entry.key._replace(only_with=only_with))
    return {heading: _in_blocks(keys) for heading, keys in sections.items()}


def _in_blocks(keys: List[Key]) -> List[Key]:
    """Let the keys of a block stand together, in the order of their first."""
    order = list(dict.fromkeys(key.name.partition(".")[0] for key in keys))
    return sorted(keys, key=lambda key: order.index(key.name.partition(".")[0]))
