"""Command lines: parse, call, exit code. What they do lives in the package."""

import functools
import logging
import sys
from typing import Callable


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
