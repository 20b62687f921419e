#!/usr/bin/env python3
"""Write doc/options.md and doc/configuration.md from the sources they describe.

    egs2/TEMPLATE/dus1/dus.sh, db.sh            -> options.md
    egs2/*/dus1/conf/, docstrings, add_argument -> configuration.md

Nothing of the package is imported: its files are read, which takes a second.
"""

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "egs2/TEMPLATE/dus1"
PACKAGE = ROOT / "espnet_dus"

# Where a key of several configurations is described best: the first of these wins.
RECIPES = ("TEMPLATE", "an4", "mini_an4", "librispeech")
# Which code reads a block of the configuration: files, and a class or function in each
# whose arguments are keys (None: all of the file's).
BLOCKS = {
    "adaptation_conf": [
        ("upscaling.py", "upscale"),
        ("layers/e_branchformer.py", "build_e_branchformer"),
        ("adaptation.py", "lora"),
    ],
    "base_lm_conf": [("base_lm.py", "load_base_lm")],
    "speech_embedder_conf": [("speech_embedder.py", "SpeechEmbedder")],
    "model_conf": [("model.py", "ESPnetDUSModel")],
    "ctc_conf": [("ctc.py", "CTCHead")],
}
# Keys of streaming_conf, with their defaults; what they mean stands in these files.
STREAMING = ("task.py", "STREAMING_CONF")
STREAMING_FILES = ("mix.py", "augment.py", "cut_stream.py", "streaming.py")
ESPNETS = "As ESPnet's option of this name."
HEADER = "<!-- Made by tools/make_docs.py: change the sources it names instead. -->\n\n"


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


def options_page() -> str:
    """Write options.md."""
    parts = [
        HEADER + "# Options of the recipes\n\n"
        "Made from the option lines of `dus.sh`. `run.sh` hands its options on to it, "
        "so all of them may follow `./run.sh`; `--stop-stage` is `--stop_stage`. "
        "`./run.sh --help` prints this list with the defaults on your machine, "
        "`./compare.sh --help` the options of the comparison. Keys of the YAML files: "
        "[configuration.md](configuration.md). What uses them: [stages.md](stages.md)."
    ]
    for heading, keys in shell_options():
        parts.append(f"## {heading}\n\n" + table(keys, "option"))
    parts.append(
        "## Corpora\n\nVariables of `db.sh`. One of the same name in the environment "
        "is stronger.\n\n" + table(corpus_variables(), "variable")
    )
    return "\n\n".join(parts) + "\n"


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

    One comment may stand above several keys; it is then that of the first.
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
                block = name if name.endswith("_conf") else ""
            choices[name] = value
            if name != block:
                name = f"{block}.{name}" if block else name
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


# -- the code --------------------------------------------------------------------------


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _literal(node: Optional[ast.expr]) -> str:
    if node is None:
        return ""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    text = ast.unparse(node)
    return {"None": "null", "True": "true", "False": "false"}.get(text, text)


def added_arguments(path: Path) -> Iterator[Key]:
    """Give the options that a file adds to a parser."""
    for node in ast.walk(_parse(path)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name, called = node.args[0], node.func
        if not isinstance(called, ast.Attribute) or called.attr != "add_argument":
            continue
        if isinstance(name, ast.Constant) and str(name.value).startswith("--"):
            keywords = {k.arg: k.value for k in node.keywords}
            what = keywords.get("help")
            yield Key(
                name.value[2:],
                what.value if isinstance(what, ast.Constant) else ESPNETS,
                _literal(keywords.get("default")),
            )


def _definitions(path: Path, name: Optional[str]) -> Iterator[ast.AST]:
    for node in _parse(path).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            if name in (None, node.name):
                yield node


def arguments(path: Path, name: Optional[str]) -> Iterator[Key]:
    """Give the arguments of a function or class that have a default, as keys."""
    for node in _definitions(path, name):
        described = documented_arguments(node)
        for function in ast.walk(node):
            if not isinstance(function, ast.FunctionDef):
                continue
            if function is not node and function.name != "__init__":
                continue
            spec = function.args
            names = [a.arg for a in spec.args][len(spec.args) - len(spec.defaults) :]
            for argument, default in zip(names, spec.defaults):
                what = described.get(argument, ESPNETS)
                yield Key(argument, what, _literal(default))


def documented_arguments(node: ast.AST, title: str = "Args") -> Dict[str, str]:
    """Read the section of this title in a Google docstring."""
    section = re.search(
        rf"^{title}:\n(.*?)(?=^\S|\Z)", ast.get_docstring(node) or "", re.M | re.S
    )
    if section is None:
        return {}
    found = re.findall(
        r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section[1] + "\n", re.M | re.S
    )
    return {name: " ".join(text.split()) for name, text in found}


def search_options() -> Iterator[Key]:
    """Give the fields of `SearchConfig`."""
    path = PACKAGE / "search/config.py"
    if not path.is_file():
        return
    for node in _definitions(path, "SearchConfig"):
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.value, ast.Call):
                default, what = field.value.args
                yield Key(field.target.id, what.value, _literal(default))


def streaming_keys() -> Iterator[Key]:
    """Give the keys of `streaming_conf`."""
    described: Dict[str, str] = {}
    files = [PACKAGE / "data" / file for file in STREAMING_FILES]
    for title in ("Args", "Attributes"):
        for path in filter(Path.is_file, files):
            for node in _definitions(path, None):
                for name, what in documented_arguments(node, title).items():
                    described.setdefault(name, what)
    file, constant = STREAMING
    for node in _parse(PACKAGE / file).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == constant:
            for key, value in zip(node.value.keys, node.value.values):
                name = key.value
                yield Key(name, described.get(name, ""), _literal(value))


def training_keys() -> Iterator[Key]:
    """Give all keys of the training that our code reads."""
    for file in sorted(PACKAGE.glob("*.py")):
        yield from added_arguments(file)
    for block, sources in BLOCKS.items():
        for file, name in sources:
            for key in arguments(PACKAGE / file, name):
                yield key._replace(name=f"{block}.{key.name}")
    for key in streaming_keys():
        yield key._replace(name=f"streaming_conf.{key.name}")


def decoding_keys() -> Iterator[Key]:
    """Give all keys of the decoding."""
    yield from added_arguments(PACKAGE / "bin/dus_inference.py")
    yield from search_options()


# -- pages -----------------------------------------------------------------------------


def table(keys: Iterable[Key], what_it_is: str) -> str:
    """Write a Markdown table."""
    rows = [f"| {what_it_is} | default | what |", "|---|---|---|"]
    for key in keys:
        only = f" Only with {key.only_with}." if key.only_with else ""
        cells = f"`{key.name}`", key.default, f"{key.what}{only}".strip()
        cells = (cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _with_the_code(
    sections: Dict[str, List[Key]], known: Iterable[Key]
) -> Tuple[Dict[str, List[Key]], List[Key]]:
    """Fill up what no YAML file says from the code; give the code's other keys too."""
    code: Dict[str, Key] = {}
    for key in known:
        code.setdefault(key.name, key)
    result: Dict[str, List[Key]] = {}
    for heading, keys in sections.items():
        for key in keys:
            same = code.pop(key.name, key)
            key = key._replace(
                what=key.what or same.what or "See the key above.",
                default=key.default or same.default,
            )
            result.setdefault(heading, []).append(key)
    rest = [key for key in code.values() if not key.name.endswith("_conf")]
    return result, rest


def _configuration(pattern: str, known: Iterable[Key], command: str) -> Iterator[str]:
    """Write what there is to set in YAML files of a name."""
    sections, rest = _with_the_code(yaml_sections(configurations(pattern)), known)
    for heading, keys in sections.items():
        yield (f"### {heading}\n\n" if heading else "") + table(keys, "key")
    recipe = (TEMPLATE / "dus.sh").read_text(encoding="utf-8")
    by_recipe = [key for key in rest if re.search(rf"--{key.name}\b", recipe)]
    rest = [key for key in rest if key not in by_recipe]
    if rest:
        what = f"{command} takes these too; no recipe's YAML file has them."
        yield f"### Not in the recipes' files\n\n{what}\n\n" + table(rest, "key")
    names = ", ".join(f"`{key.name}`" for key in by_recipe)
    yield f"Set by `dus.sh`, by its own options: {names}."


def configuration_page() -> str:
    """Write configuration.md."""
    parts = [
        HEADER + "# Configuration\n\n"
        "Made from the comments of the recipes' YAML files and, where no recipe sets a "
        "key, from the code. A key is set in the YAML file (`--dus_config`, "
        "`--inference_config`) or, stronger, as an option in `--dus_args` or "
        "`--inference_args`: `optim_conf.lr` is key `lr` of the block `optim_conf`, "
        'as an option `--optim_conf lr=2e-4`. Remarks such as "2048 here" are those '
        "of the file that the description comes from. Options of the recipe itself: "
        "[options.md](options.md).",
        "## Training\n\nESPnet's own options of a training are known too: "
        "`python -m espnet_dus.bin.dus_train --help` prints all of them.",
    ]
    parts += _configuration("train_*.yaml", training_keys(), "`dus_train`")
    parts.append("## Decoding")
    parts += _configuration("decode_*.yaml", decoding_keys(), "`dus_inference`")
    return "\n\n".join(parts) + "\n"


def pages() -> Dict[Path, str]:
    """Write all pages, in memory."""
    return {
        ROOT / "doc/options.md": options_page(),
        ROOT / "doc/configuration.md": configuration_page(),
    }


def main() -> None:
    """Write the pages, or check that they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail if one is out of date"
    )
    check = parser.parse_args().check
    for path, text in pages().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            sys.exit(f"{path} is out of date: run python tools/make_docs.py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
