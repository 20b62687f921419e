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

from keys_of_code import CHOICES, chosen_keys, decoding_keys, training_keys
from keys_of_recipes import (
    ROOT,
    TEMPLATE,
    Key,
    configurations,
    corpus_variables,
    shell_options,
    yaml_keys,
)

# Headings of configuration.md, with the blocks and keys below; the last has the rest.
SECTIONS = {
    "Method": ("adaptation", "adaptation_conf"),
    "The base LM": ("base_lm_conf", "use_tf32", "gradient_checkpointing"),
    "Speech in": (
        *("speech_input", "speech_embedder_conf", "frontend", "frontend_conf"),
        *("freeze_frontend", "specaug", "specaug_conf", "normalize", "normalize_conf"),
    ),
    "Losses": ("model_conf", "ctc_conf"),
    "Data": ("streaming_conf", "batch_type", "batch_size", "batch_bins", "num_workers")
    + ("num_iters_per_epoch", "max_bad_utterances"),
    "Training": (),
}
MARK = "<!-- From here on made by tools/make_docs.py: change the sources it names. -->"
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


def _with_the_code(described: Iterable[Key], known: Iterable[Key]) -> List[Key]:
    """Merge the keys that YAML files describe with those of the code."""
    keys: Dict[str, Key] = {}
    for key in known:
        if not key.name.endswith("_conf"):
            keys.setdefault(key.name, key)
    for key in described:
        default = key.default or keys.get(key.name, key).default
        keys[key.name] = key._replace(default=default)
    return list(keys.values())


def _set_by_the_recipe(
    keys: Iterable[Key], described: Iterable[Key]
) -> Tuple[List[Key], List[Key]]:
    """Divide keys into those that dus.sh alone sets, by its options, and the others."""
    recipe = (TEMPLATE / "dus.sh").read_text(encoding="utf-8")
    # except functions that run another command with options of the same names
    recipe = re.sub(
        r"^\w+\(\) \{(?:(?!^\}).)*?dus_alone.*?^\}", "", recipe, flags=re.M | re.S
    )
    parts: Tuple[List[Key], List[Key]] = ([], [])
    names = {key.name for key in described}
    for key in keys:
        alone = key.name not in names and re.search(rf"--{key.name}\b", recipe)
        parts[0 if alone else 1].append(key)
    return parts


def _training() -> Iterator[str]:
    """Write the keys of a training configuration."""
    described = yaml_keys(configurations("base*.yaml", "train_*.yaml"))
    keys = _with_the_code(described, training_keys())
    by_recipe, keys = _set_by_the_recipe(keys, described)
    keys = [key for key in keys if key.name.partition(".")[0] not in CHOICES]
    for heading, blocks in SECTIONS.items():
        here = [k for k in keys if k.name.partition(".")[0] in blocks or not blocks]
        keys = [key for key in keys if key not in here]
        here.sort(key=lambda key: key.name.partition(".")[0])
        yield f"### {heading}\n\n" + table(here, "key")
        for block in filter(CHOICES.get, blocks):
            for choice, chosen in chosen_keys(block):
                yield f"With {choice}:\n\n" + table(chosen, "key")
    names = ", ".join(f"`{key.name}`" for key in by_recipe)
    yield f"Set by `dus.sh`, by its own options: {names}."


def _decoding() -> Iterator[str]:
    """Write the keys of a decoding configuration."""
    described = yaml_keys(configurations("decode_*.yaml"))
    keys = _with_the_code(described, decoding_keys())
    by_recipe, keys = _set_by_the_recipe(keys, described)
    yield table(keys, "key")
    names = ", ".join(f"`{key.name}`" for key in by_recipe)
    yield f"Set by `dus.sh`, by its own options: {names}."


def configuration_page() -> str:
    """Write configuration.md: what is above the mark stays as it is."""
    page = (ROOT / "doc/configuration.md").read_text(encoding="utf-8")
    parts = [page.partition(MARK)[0], MARK, "## Keys of a training", *_training()]
    parts.append("## Keys of a decoding")
    parts += _decoding()
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


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
