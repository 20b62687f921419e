"""A text that every machine has: part of Python's documentation."""

from pathlib import Path
from typing import Union

from espnet_dus.io import write_text

# Mostly prose, and word for word the same in Python 3.12 and 3.13.
TOPICS = ("exceptions", "import", "with", "context-managers", "truth")


def write_pydoc_text(path: Union[str, Path]) -> int:
    """Write the topics as one text, for a quick look at perplexity.

    Args:
        path: The file to write.

    Returns:
        The number of words.
    """
    from pydoc_data.topics import topics

    text = "\n".join(topics[name].strip() + "\n" for name in TOPICS)
    write_text(path, text)
    return len(text.split())
