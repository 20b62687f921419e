"""Command lines: parse, call, exit code. The package does the work.

`espnet_dus.app.cli` makes the commands of these modules subcommands of `espnet-dus`,
which is `python -m espnet_dus`. Modules named `dus_*` are those that ESPnet users call
by name.
"""

import argparse
import functools
import importlib
import inspect
import logging
import re
import sys
from collections import abc
from types import MappingProxyType
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Mapping,
    Optional,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)


def user_errors(main: Callable) -> Callable:
    """Turn the errors meant for users into one line on stderr and exit code 1.

    A programmer's error keeps its traceback. A character that the locale cannot print
    is escaped, so that no name stops a command.

    Args:
        main: A command's `main(cmd=None)`.

    Returns:
        The wrapped function.
    """

    @functools.wraps(main)
    def wrapped(cmd=None):
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
        )
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            return main(cmd)
        except (ValueError, RuntimeError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            logging.debug("where it was raised:", exc_info=True)
            sys.exit(1)

    return wrapped


class Commands:
    """The subcommands of a program.

    Args:
        prog: Name of the program.
        description: Shown above the list of commands.

    Attributes:
        parsers: The commands' parsers, an action of argparse.
        prepare: Functions that add the options of a command which names a function.

    Examples:
        >>> commands = Commands("espnet-dus", "Tools for speech LMs.")
        >>> commands.add("pack", "espnet_dus.zoo.pack:pack", "Pack a model.")
        >>> commands.run(["pack", "--out_path", "a.zip", ...])
    """

    def __init__(self, prog: str, description: str):
        self.parser = argparse.ArgumentParser(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.parsers = self.parser.add_subparsers(
            dest="command", required=True, metavar="COMMAND"
        )
        self.prepare: Dict[str, Callable[[], None]] = {}

    def add(
        self,
        name: str,
        function: Union[str, Callable],
        description: str,
        names: Mapping[str, str] = MappingProxyType({}),
        show: Optional[Callable[[Any], str]] = None,
        **options: Any,
    ) -> argparse.ArgumentParser:
        """Add a command.

        Args:
            name: Its name.
            function: `module:name`: its arguments are the command's options, see
                `add_arguments`. It is imported when the command is used, so that a
                command line loads only what it needs. Or a function, whose options the
                caller adds. Words that are no options go to its argument `cmd`.
            description: One sentence.
            names: Names of options by argument, where they differ.
            show: Formats what the function returns, to be printed.
            options: Further arguments of `ArgumentParser`.

        Returns:
            The parser of its options.
        """
        command = self.parsers.add_parser(
            name,
            help=description,
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
            **options,
        )
        command.set_defaults(function=function, show=show)
        if isinstance(function, str):
            self.prepare[name] = lambda: add_arguments(command, load(function), names)
        return command

    def run(self, cmd: Optional[Iterable[str]] = None) -> None:
        """Run the command that a command line names; None: that of the process."""
        words = sys.argv[1:] if cmd is None else list(cmd)
        if words and words[0] in self.prepare:
            self.prepare[words[0]]()
        args, others = self.parser.parse_known_args(words)
        options = vars(args)
        name, function, show = map(options.pop, ("command", "function", "show"))
        function = load(function) if isinstance(function, str) else function
        if "cmd" in inspect.signature(function).parameters:
            options["cmd"] = others
        elif others:
            self.parser.error(f"{name}: unrecognized arguments: {' '.join(others)}")
        result = function(**options)
        if show is not None and result is not None:
            print(show(result))


def load(function: str) -> Callable:
    """Import the function that `module:name` names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def add_arguments(
    parser: argparse.ArgumentParser, function: Callable, names: Mapping[str, str]
) -> None:
    """Add the arguments of a function as options, described by its docstring.

    Args:
        parser: Gets the options.
        function: Its annotations are the types: of a union, `str` or else the first. A
            sequence takes several words, a bool `true` or `false`.
        names: Names of options by argument, where they differ.
    """
    described = documented_arguments(inspect.getdoc(function))
    types = get_type_hints(function)
    for argument in inspect.signature(function).parameters.values():
        if argument.name == "cmd":
            continue
        name = names.get(argument.name, argument.name)
        kind, several = _without_union(types[argument.name]), {}
        if get_origin(kind) is abc.Sequence:
            kind, several = _without_union(get_args(kind)[0]), {"nargs": "+"}
        required = argument.default is argument.empty
        parser.add_argument(
            f"--{name}",
            dest=argument.name,
            metavar=name.upper(),
            required=required,
            default=None if required else argument.default,
            type=boolean if kind is bool else kind,
            help=described[argument.name].replace("%", "%%"),
            **several,
        )


def documented_arguments(docstring: Optional[str]) -> Dict[str, str]:
    """Return the descriptions in a Google docstring, by argument."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring or "", re.M | re.S)
    if section is None:
        return {}
    entry = r"^    (\w+): (.*?)(?=^    \w+: |\Z)"
    found = re.findall(entry, section[1] + "\n", re.M | re.S)
    return {name: " ".join(text.split()) for name, text in found}


def _without_union(kind: Any) -> Any:
    if get_origin(kind) is not Union:
        return kind
    return str if str in get_args(kind) else get_args(kind)[0]


def boolean(text: str) -> bool:
    """Read `true` or `false`, as the recipes' options have them."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text == "true"


def channel(text: str) -> Any:
    """Read an option `--channel`, see `data.data_dir.parse_channel`."""
    from espnet_dus.data.data_dir import parse_channel

    try:
        return parse_channel(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
