"""The options of a stream of shards, checked by name."""

from dataclasses import dataclass, field, fields
from typing import Any, Dict, Optional, Sequence, Union


def _option(default: Any, help_text: str) -> Any:
    if isinstance(default, list):
        factory = default.copy
        return field(default_factory=factory, metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class StreamingConfig:
    """The options of a stream; each field is a key of `streaming_conf`.

    Raises:
        ValueError: A value is out of range, or has no effect.
    """

    shards: Union[None, str, Dict[str, float]] = _option(
        None, "a directory of shards, directories with weights, or a YAML file of these"
    )
    max_tokens: int = _option(
        8192, "maximum LLM positions in a batch of one GPU, padding included"
    )
    batch_sizes: Union[None, str, Dict[int, int]] = _option(
        None,
        "instead of max_tokens: maximum utterances in a batch of one GPU by the LLM "
        "positions of the longest, or a file of find_batch with them",
    )
    tokens_per_update: Optional[int] = _option(
        None,
        "LLM positions in an update, on all GPUs together; the number of accumulated "
        "batches follows from it. null: one full batch on each GPU",
    )
    buffer_size: int = _option(
        3000, "utterances that a reader holds to choose from, with their audio"
    )
    hours_per_epoch: Optional[float] = _option(
        None, "hours of audio in an epoch; null: all of the data"
    )
    max_duration: float = _option(30.0, "longest utterance in seconds")
    min_text_rate: float = _option(
        0.06, "minimum transcript tokens per second of speech"
    )
    max_text_rate: float = _option(
        12.5, "maximum transcript tokens per second of speech"
    )
    speed_factors: Sequence[float] = _option(
        [1.0], "speeds to draw from for each utterance"
    )
    noise: Optional[str] = _option(None, "a directory with recordings of noise")
    noise_prob: float = _option(0.5, "share of the utterances that get noise")
    noise_snr: Sequence[float] = _option(
        [5.0, 20.0], "lowest and highest signal-to-noise ratio in dB"
    )
    rir: Optional[str] = _option(None, "a directory with room impulse responses")
    rir_prob: float = _option(0.3, "share of the utterances that are reverberated")

    def __post_init__(self):
        """Check the values."""
        where = "streaming_conf"
        if self.shards is None:
            raise ValueError(f"{where}: shards: name a directory of shards")
        for name in ("max_tokens", "buffer_size", "tokens_per_update"):
            value = getattr(self, name)
            if name == "tokens_per_update" and value is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{where}: {name}: expected an integer from 1 on, got {value!r}"
                )
        hours = self.hours_per_epoch
        if hours is not None and not hours > 0:
            raise ValueError(
                f"{where}: hours_per_epoch: expected more than 0, got {hours!r}"
            )
        for name in ("noise_prob", "noise_snr", "rir_prob"):
            source, value = name.partition("_")[0], getattr(self, name)
            if getattr(self, source) is None and value != DEFAULTS[name]:
                raise ValueError(
                    f"{where}: {name}={value} has no effect without {source}"
                )


DEFAULTS: Dict[str, Any] = {
    option.name: (
        option.default_factory() if callable(option.default_factory) else option.default
    )
    for option in fields(StreamingConfig)
}
