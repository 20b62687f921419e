"""What a speech tokenizer is, read from its directory without loading an encoder.

tokenizer.json         the fields of `TokenizerInfo`
centres.safetensors    the cluster centres (clusters, dimensions) of a k-means tokenizer

The encoder is named, not stored; its own identity is part of its description.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from espnet_dus.io import atomic_path, write_text

INFO = "tokenizer.json"
CENTRES = "centres.safetensors"


@dataclass(frozen=True)
class TokenizerInfo:
    """What the rest of the package needs to know about a speech tokenizer.

    Attributes:
        name: Such as `whisper_tiny_en`.
        encoder: What computes the vectors or tokens: its options and its identity.
        frames_per_second: Frames in a second of audio, before repeats are removed.
        sampling_rate: Of the audio, in Hz.
        vocab_sizes: Number of different tokens of each stream; stream k holds integers
            from 0 to `vocab_sizes[k]` - 1.
        remove_repeats: Whether a token that repeats the one before it is left out.
        sha256: Over all fields above and the cluster centres.
        learned_on: What the centres were learned from, for information.
    """

    name: str
    encoder: Dict[str, Any]
    frames_per_second: float
    sampling_rate: int
    vocab_sizes: Tuple[int, ...]
    remove_repeats: bool = False
    sha256: str = ""
    learned_on: Dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "vocab_sizes", tuple(self.vocab_sizes))
        if not self.vocab_sizes or min(self.vocab_sizes) < 1:
            raise ValueError(
                f"tokenizer {self.name}: vocab_sizes is {list(self.vocab_sizes)}, "
                "expected one number from 1 on for each stream"
            )
        if self.remove_repeats and len(self.vocab_sizes) > 1:
            raise ValueError(
                f"tokenizer {self.name}: repeats can be removed from one stream, but "
                f"it has {len(self.vocab_sizes)}"
            )

    @property
    def streams(self) -> int:
        """Number of tokens in a frame."""
        return len(self.vocab_sizes)

    @property
    def identity(self) -> Dict[str, str]:
        """What checkpoints, statistics and packs record: `name` and `sha256`."""
        return {"name": self.name, "sha256": self.sha256}

    def write(
        self, directory: Union[str, Path], centres: Optional[np.ndarray] = None
    ) -> "TokenizerInfo":
        """Write a tokenizer directory; `tokenizer.json` appears last.

        Args:
            directory: The directory to write.
            centres: Cluster centres (clusters, dimensions), float32; None: the encoder
                gives tokens itself.

        Returns:
            This description with its `sha256`.
        """
        directory = Path(directory)
        (directory / INFO).unlink(missing_ok=True)
        if centres is None:
            (directory / CENTRES).unlink(missing_ok=True)
        else:
            with atomic_path(directory / CENTRES) as temporary:
                temporary.write_bytes(save({"centres": np.ascontiguousarray(centres)}))
        info = replace(self, sha256=_sha256(self, centres))
        write_text(directory / INFO, json.dumps(asdict(info), indent=2) + "\n")
        return info

    @classmethod
    def read(cls, directory: Union[str, Path]) -> "TokenizerInfo":
        """Read a tokenizer directory and check that it is what was written.

        Raises:
            ValueError: It is missing, incomplete or changed.
        """
        return read_tokenizer(directory)[0]


def read_tokenizer(
    directory: Union[str, Path],
) -> Tuple[TokenizerInfo, Optional[np.ndarray]]:
    """Read a tokenizer's description and its cluster centres, if it has any.

    Raises:
        ValueError: The directory is missing, incomplete or changed.
    """
    path = Path(directory) / INFO
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; expected a speech tokenizer's directory, as stage "
            "3 makes with --feats_type tokens"
        )
    centres = None
    try:
        info = TokenizerInfo(**json.loads(path.read_text("utf-8")))
        if (path.with_name(CENTRES)).is_file():
            centres = load_file(path.with_name(CENTRES))["centres"]
    except (TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not a speech tokenizer's description: {error}"
        ) from error
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path.with_name(CENTRES)}: damaged ({error}); make the tokenizer again "
            "(stage 3)"
        ) from error
    found = _sha256(info, centres)
    if found != info.sha256:
        raise ValueError(
            f"{directory}: the speech tokenizer has changed since it was made (sha256 "
            f"{found[:12]}, {INFO} says {info.sha256[:12]}): {INFO} was edited, or "
            f"{CENTRES} is missing or another one. Make it again (stage 3), or take it "
            "from the model's pack"
        )
    return info, centres


def check_same_tokenizer(
    saved: Mapping[str, str], info: TokenizerInfo, what: str = "this checkpoint"
) -> None:
    """Check that a tokenizer is the one that something was made with.

    Args:
        saved: The recorded `TokenizerInfo.identity`.
        info: The present tokenizer.
        what: What recorded it, for the message.

    Raises:
        RuntimeError: It is another one; both are named.
    """
    if saved["sha256"] != info.sha256:
        raise RuntimeError(
            f"{what} belongs to the speech tokenizer {saved['name']} (sha256 "
            f"{saved['sha256'][:12]}), but the one at hand is {info.name} (sha256 "
            f"{info.sha256[:12]}): pass the former (--speech_tokenizer)"
        )


def _sha256(info: TokenizerInfo, centres: Optional[np.ndarray]) -> str:
    fields = asdict(info)
    del fields["sha256"], fields["learned_on"]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    if centres is not None:
        digest.update(f"{centres.dtype} {centres.shape}\n".encode())
        digest.update(np.ascontiguousarray(centres).tobytes())
    return digest.hexdigest()
