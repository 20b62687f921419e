"""Command lines: parse, call, exit code. What they do is in the package.

The commands of a wing are in one module here. `espnet_dus.app.cli` collects them as
subcommands of `espnet-dus`, which is `python -m espnet_dus`. Modules named `dus_*` are
those that ESPnet users call by name.
"""

import argparse
import functools
import importlib
import inspect
import logging
import sys
from typing import Any, Callable, Iterable, Optional, Sequence


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
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
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

    Examples:
        >>> commands = Commands("espnet-dus", "Tools for speech LMs.")
        >>> command = commands.add("pack", call("espnet_dus.zoo.pack:pack"), "Pack.")
        >>> command.add_argument("--out_path", required=True)
        >>> commands.run(["pack", "--out_path", "a.zip"])
    """

    def __init__(self, prog: str, description: str):
        self.parser = argparse.ArgumentParser(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._commands = self.parser.add_subparsers(
            dest="command", required=True, metavar="COMMAND"
        )

    def add(
        self,
        name: str,
        run: Callable,
        description: str,
        parents: Sequence[argparse.ArgumentParser] = (),
        **options: Any,
    ) -> argparse.ArgumentParser:
        """Add a command.

        Args:
            name: Its name.
            run: Called with its options as keywords, and with all words unknown to the
                parser as `others`, if it has such an argument.
            description: One sentence.
            parents: Parsers whose options it shares.
            options: Further arguments of `ArgumentParser`.

        Returns:
            The parser of its options.
        """
        command = self._commands.add_parser(
            name,
            help=description,
            description=description,
            parents=list(parents),
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
            **options,
        )
        command.set_defaults(run=run)
        return command

    def run(self, cmd: Optional[Iterable[str]] = None) -> None:
        """Run the command that a command line names; None: that of the process."""
        args, others = self.parser.parse_known_args(None if cmd is None else list(cmd))
        options = vars(args)
        run = options.pop("run")
        name = options.pop("command")
        if "others" in inspect.signature(run).parameters:
            options["others"] = others
        elif others:
            self.parser.error(f"{name}: unrecognized arguments: {' '.join(others)}")
        run(**options)


def call(function: str, show: bool = False) -> Callable:
    """Return a function that imports another one when it is called.

    A command line thus starts at once and loads only what its command needs.

    Args:
        function: `module:name`.
        show: Whether to print what it returns.
    """

    def run(**options):
        module, name = function.split(":")
        result = getattr(importlib.import_module(module), name)(**options)
        if show:
            print(result)

    return run


def main_of(name: str, add_commands: Callable[[Commands], None]) -> Callable:
    """Return the `main(cmd=None)` of one command of a wing, to be called by itself."""

    def main(cmd=None):
        commands = Commands("python -m espnet_dus", __doc__)
        add_commands(commands)
        commands.run([name, *(sys.argv[1:] if cmd is None else cmd)])

    return user_errors(main)


def boolean(text: str) -> bool:
    """Read `true` or `false`, as the recipes' options have them."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text == "true"


def channel(text: str) -> Any:
    """Read an option `--channel`, see `data.audio.parse_channel`."""
    from espnet_dus.data.audio import parse_channel

    try:
        return parse_channel(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
