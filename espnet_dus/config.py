"""Training configurations in YAML, with a `defaults:` list as in ESPnet3.

    defaults:                   # read first, in this order; then the file itself
        - ../base_360m.yaml     # relative to the file that names it
    adaptation: lora            # blocks are merged key by key

`python -m espnet_dus.config FILE` prints a file with its defaults resolved.
"""

import argparse
import logging
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Union

import yaml
from espnet2.utils import config_argparse
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def load_config(path: Union[str, Path]) -> Dict[str, Any]:
    """Load a YAML file and the files that its `defaults:` list names.

    Args:
        path: The file. A link counts as the file that it leads to, so that a recipe
            may link to the configurations of another one.

    Returns:
        The keys and values of all the files, without `defaults`.

    Raises:
        ValueError: A file is missing, is not a YAML mapping, or names itself.
    """
    with _without_logging():
        from espnet3.utils.config_utils import load_config_with_defaults
    try:
        config = load_config_with_defaults(str(Path(path).resolve()))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: no such file: {error.filename} (paths in a `defaults:` list are "
            "relative to the file that has the list)"
        ) from None
    except RecursionError:
        raise ValueError(f"{path}: its `defaults:` list leads back to itself") from None
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path}: expected keys with values, found a list")
    return OmegaConf.to_container(config, resolve=True)


@contextmanager
def _without_logging() -> Iterator[None]:
    """Keep an import from logging: with no handler, that would configure logging."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        logging.root.removeHandler(handler)


class ConfigParser(config_argparse.ArgumentParser):
    """ESPnet's parser; the file of `--config` may have a `defaults:` list."""

    def parse_known_args(self, args=None, namespace=None):
        """Parse options; those of the command line override those of `--config`."""
        found, _ = argparse.ArgumentParser.parse_known_args(self, args, namespace)
        if found.config is not None:
            try:
                config = load_config(found.config)
            except ValueError as error:
                self.error(str(error))
            known = {action.dest for action in self._actions}
            if unknown := [key for key in config if key not in known]:
                self.error(f"{found.config}: unknown key(s): {', '.join(unknown)}")
            self.set_defaults(**config)
        found, others = argparse.ArgumentParser.parse_known_args(self, args, namespace)
        for name, value in vars(found).items():
            if isinstance(value, dict):
                setattr(found, name, _read_exponents(value))
        return found, others


def _read_exponents(value: Any) -> Any:
    """Read 8e-4 as a number, as in files; PyYAML reads it in options as text."""
    if isinstance(value, dict):
        return {key: _read_exponents(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_read_exponents(item) for item in value]
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return value


if __name__ == "__main__":
    try:
        print(yaml.safe_dump(load_config(sys.argv[1]), sort_keys=False), end="")
    except (IndexError, ValueError) as error:
        sys.exit(f"usage: python -m espnet_dus.config FILE\nerror: {error}")
