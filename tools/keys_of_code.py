"""Options and keys as the code describes them: docstrings, signatures, add_argument.

The files are parsed, not imported, which takes a second where torch takes ten.
"""

import ast
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

from keys_of_recipes import ROOT, Key

from espnet_dus.bin import documented_arguments

PACKAGE = ROOT / "espnet_dus"

# The code that reads a block of the configuration: a file, and the class or function in
# it whose arguments are keys.
BLOCKS = {
    "base_lm_conf": ("model/base_lm.py", "load_base_lm"),
    "model_conf": ("model/espnet_model.py", "ESPnetDUSModel"),
    "ctc_conf": ("model/ctc_head.py", "CTCHead"),
}
# Blocks whose keys depend on a choice: by choice, where they are described.
CHOICES = {
    "adaptation_conf": {
        "`adaptation: dus`": ("model/upscaling.py", "upscale"),
        "`kind: e_branchformer`, `scope: all`": (
            "model/layers/hybrid.py",
            "build_hybrid",
        ),
        "`kind: e_branchformer`, `scope: speech`": (
            "model/layers/e_branchformer.py",
            "build_e_branchformer",
        ),
        "`adaptation: lora`": ("model/adaptation.py", "lora"),
    },
    "speech_embedder_conf": {
        "`speech_input: tokens`": ("model/token_embedder.py", "TokenEmbedder"),
        "`speech_input: features`": ("model/speech_embedder.py", "SpeechEmbedder"),
    },
}
ESPNETS = "As ESPnet's option of this name."


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
    """Yield the options that a file adds to a parser."""
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


def _definition(file: str, name: str) -> ast.AST:
    body = _parse(PACKAGE / file).body
    return next(node for node in body if getattr(node, "name", None) == name)


def arguments(file: str, name: str) -> Iterator[Key]:
    """Yield the arguments with a default of a function or class, as keys."""
    node = _definition(file, name)
    described = documented_arguments(ast.get_docstring(node))
    for function in ast.walk(node):
        if not isinstance(function, ast.FunctionDef):
            continue
        if function is not node and function.name != "__init__":
            continue
        spec = function.args
        names = [a.arg for a in spec.args][len(spec.args) - len(spec.defaults) :]
        names += [a.arg for a in spec.kwonlyargs]
        for argument, default in zip(names, spec.defaults + spec.kw_defaults):
            what = described.get(argument, ESPNETS)
            yield Key(argument, what, _literal(default))


def fields(file: str, name: str) -> Iterator[Key]:
    """Yield the fields of a dataclass that has a help text for each."""
    for field in _definition(file, name).body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.value, ast.Call):
            default, what = field.value.args
            yield Key(field.target.id, what.value, _literal(default))


def training_keys() -> Iterator[Key]:
    """Yield all keys of the training that this package reads."""
    for file in (PACKAGE / "task.py", PACKAGE / "training/trainer.py"):
        yield from added_arguments(file)
    for block, source in BLOCKS.items():
        for key in arguments(*source):
            yield key._replace(name=f"{block}.{key.name}")
    for key in fields("data/shards/config.py", "StreamingConfig"):
        yield key._replace(name=f"streaming_conf.{key.name}")


def chosen_keys(block: str) -> Iterator[Tuple[str, List[Key]]]:
    """Yield the keys of a block of `CHOICES` for each choice."""
    for choice, source in CHOICES[block].items():
        keys = arguments(*source)
        yield choice, [key._replace(name=f"{block}.{key.name}") for key in keys]


def decoding_keys() -> Iterator[Key]:
    """Yield all keys of the decoding."""
    yield from added_arguments(PACKAGE / "bin/dus_inference.py")
    yield from fields("search/config.py", "SearchConfig")
