"""The options of a search, checked by name."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Dict, Optional, Sequence, Union


def _option(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class SearchConfig:
    """How transcripts are searched for; the defaults are a plain greedy search.

    Each field is an option of `dus_inference` and a key of its YAML.

    Raises:
        ValueError: A value out of its range, or two that contradict each other.
    """

    beam_size: int = _option(1, "hypotheses kept at each step; 1: greedy")
    nbest: int = _option(1, "hypotheses given for an utterance, at most beam_size")
    ctc_weight: float = _option(0.0, "share of the CTC head in the score, 0 to 1")
    penalty: float = _option(0.0, "added to the score for each token (beam)")
    word_reward: float = _option(0.0, "added for each word when n-best are ranked")
    draft: bool = _option(False, "the LLM verifies the CTC head's draft (greedy)")
    maxlenratio: float = _option(1.0, "at most so many tokens for a speech position")
    repetition: int = _option(
        6, "stop when a sequence of tokens stands so often in a row; 0: never"
    )
    no_speech: float = _option(
        0.5, "audio whose speech probability stays below gives nothing; 0: never"
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
                f"draft: goes with greedy search only, beam_size is {self.beam_size}"
            )
        for name in ("ctc_weight", "penalty", "word_reward"):
            if getattr(self, name) and self.beam_size == 1:
                raise ValueError(
                    f"{name}: {getattr(self, name)} has no effect in greedy search; "
                    "give beam_size 2 or more"
                )

    @classmethod
    def make(cls, search: Union["SearchConfig", Dict[str, Any], None]):
        """Take a configuration as it is, or make one of a dict.

        Raises:
            ValueError: The dict has a key that is not known.
        """
        if isinstance(search, cls):
            return search
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(search or {}) - set(known)):
            raise ValueError(
                f"search: unknown key(s) {', '.join(unknown)}; expected some of "
                f"{', '.join(known)}"
            )
        return cls(**(search or {}))

    def asdict(self) -> Dict[str, Any]:
        """Give the options by name."""
        return asdict(self)


Search = Optional[Union[SearchConfig, Dict[str, Any]]]


def add_options(parser: Any, names: Optional[Sequence[str]] = None) -> None:
    """Add the options of a search to a command's parser or a group of it.

    Args:
        parser: Whose `add_argument` is called.
        names: Which options; None: all.
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
