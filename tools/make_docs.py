#!/usr/bin/env python3
"""Write doc/options.md and doc/configuration.md from the sources they describe.

egs2/TEMPLATE/dus1/dus.sh, db.sh            -> options.md
egs2/*/dus1/conf/, docstrings, add_argument -> configuration.md
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Tuple

from keys_of_code import decoding_keys, training_keys
from keys_of_recipes import (
    ROOT,
    TEMPLATE,
    Key,
    configurations,
    corpus_variables,
    shell_options,
    yaml_sections,
)

HEADER = "<!-- Made by tools/make_docs.py: change the sources it names instead. -->\n\n"


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
    # but for functions that run another command, with options of the same names
    recipe = re.sub(
        r"^\w+\(\) \{(?:(?!^\}).)*?dus_alone.*?^\}", "", recipe, flags=re.M | re.S
    )
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
        'as an option `--optim_conf lr=2.0e-4`. Remarks such as "2048 here" are those '
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
