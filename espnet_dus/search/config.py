"""The options of a search, checked by name."""

from dataclasses import dataclass, field, fields
from typing import Any, Dict, Optional, Sequence, Union

from espnet_dus.io import check_names


def _option(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class SearchConfig:
    """The options of a search; the defaults are a plain greedy search.

    Each field is an option of `dus_inference` and a key of its YAML.

    Raises:
        ValueError: A value is out of its range, or two contradict each other.
    """

    beam_size: int = _option(1, "hypotheses kept at each step; 1: greedy")
    nbest: int = _option(1, "hypotheses returned per utterance, at most beam_size")
    ctc_weight: float = _option(0.0, "weight of the CTC head in the score, 0 to 1")
    penalty: float = _option(0.0, "added to the score for each token (beam)")
    word_reward: float = _option(0.0, "added for each word when the n-best are ranked")
    draft: bool = _option(False, "the LLM verifies the CTC head's draft (greedy)")
    maxlenratio: float = _option(
        1.0, "maximum tokens per speech position; 0: 1 per position, as in ESPnet"
    )
    repetition: int = _option(
        6, "times in a row that a token sequence may be repeated; 0: no limit"
    )
    no_speech: float = _option(
        0.5, "skip audio whose speech probability never reaches this; 0: off"
    )
    word_times: bool = _option(False, "align the words of the transcript in time")

    def __post_init__(self):
        """Check the values."""
        for name, fits, expected in (
            ("beam_size", self.beam_size >= 1, "1 or more"),
            ("nbest", 1 <= self.nbest <= self.beam_size, "1 to beam_size"),
            ("ctc_weight", 0 <= self.ctc_weight <= 1, "0 to 1"),
            ("maxlenratio", self.maxlenratio >= 0, "0 or more"),
            ("repetition", self.repetition == 0 or self.repetition >= 2, "0, or 2 up"),
            ("no_speech", 0 <= self.no_speech < 1, "0 to below 1"),
        ):
            if not fits:
                raise ValueError(
                    f"{name}: {getattr(self, name)}, expected {expected} (beam_size is "
                    f"{self.beam_size})"
                )
        if self.draft and self.beam_size > 1:
            raise ValueError(
                f"draft: works with greedy search only, but beam_size is "
                f"{self.beam_size}"
            )
        for name in ("ctc_weight", "penalty", "word_reward"):
            if getattr(self, name) and self.beam_size == 1:
                raise ValueError(
                    f"{name}: {getattr(self, name)} has no effect in greedy search; "
                    "set beam_size to 2 or more"
                )

    @classmethod
    def make(cls, search: Union["SearchConfig", Dict[str, Any], None]):
        """Return a configuration as it is, or make one from a dict.

        Raises:
            ValueError: The dict has an unknown key.
        """
        if isinstance(search, cls):
            return search
        search = search or {}
        check_names("search", search, [option.name for option in fields(cls)])
        return cls(**search)


Search = Optional[Union[SearchConfig, Dict[str, Any]]]


def add_options(parser: Any, names: Optional[Sequence[str]] = None) -> None:
    """Add the options of a search to a command's parser.

    Args:
        parser: An argument parser or a group of one.
        names: Options to add; None: all.
    """
    for option in fields(SearchConfig):
        if names is not None and option.name not in names:
            continue
        kind = type(option.default)
        if kind is bool:
            from espnet2.utils.types import str2bool as kind
        parser.add_argument(
            f"--{option.name}",
            type=kind,
            default=option.default,
            help=option.metadata["help"],
        )
