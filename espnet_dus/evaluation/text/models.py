"""The two LMs of a comparison: their identities, and the LMs, loaded when needed."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Optional, Union

import torch
from transformers import GenerationConfig

from espnet_dus.io import file_sha256
from espnet_dus.model.adaptation import drop_added_layers
from espnet_dus.model.base_lm import identify, load_base_lm, resolve_dtype
from espnet_dus.model.build import load_model
from espnet_dus.model.checkpoint import checkpoint_identity, checkpoint_sha256

DTYPES = ("float32", "bfloat16")


class Models:
    """A base LM and, with a configuration and a checkpoint, the LM adapted from it.

    Construction checks and identifies them; an LM is loaded on first use.

    Args:
        base_lm: Base LM directory.
        config: `config.yaml` of the training run, or None for the base LM alone.
        model_file: Its checkpoint.
        dtype: Precision of both: `float32`, or `bfloat16`.

    Raises:
        ValueError: Only one of `config` and `model_file` is given, one is missing, the
            training had a different base LM, or the precision is unknown.
    """

    def __init__(
        self,
        base_lm: Union[str, Path],
        config: Optional[Union[str, Path]] = None,
        model_file: Optional[Union[str, Path]] = None,
        dtype: str = "float32",
    ):
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        if (config is None) != (model_file is None):
            raise ValueError(
                "an adapted model is a training configuration and a checkpoint: "
                "expected both or, to evaluate the base LM alone, neither"
            )
        self.directory, self.config, self.model_file = base_lm, config, model_file
        self.dtype = dtype
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.checkpoint: Optional[str] = None
        self.identity = identify(base_lm)
        self.sha256 = {"base": self.identity.sha256}
        if config is not None:
            for path in (config, model_file):
                if not Path(path).is_file():
                    raise ValueError(f"{path}: no such file")
            self._check_base()
            self.checkpoint = checkpoint_sha256(model_file)
            parts = self.identity.sha256, file_sha256(config), self.checkpoint
            self.sha256["adapted"] = hashlib.sha256("".join(parts).encode()).hexdigest()

    def _check_base(self) -> None:
        expected = checkpoint_identity(self.model_file)
        if expected.sha256 != self.identity.sha256:
            raise ValueError(
                f"{self.model_file} was trained on the base LM {expected.name} "
                f"(sha256 {expected.sha256[:12]}), but {self.directory} has "
                f"{self.identity.sha256[:12]}: compare it with the former (--base_lm)"
            )

    @cached_property
    def _loaded_base(self):
        lm, tokenizer, _ = load_base_lm(self.directory, dtype=self.dtype)
        return self._ready(lm, tokenizer), tokenizer

    def _ready(self, lm: torch.nn.Module, tokenizer) -> torch.nn.Module:
        """Move an LM to its device and give it neutral generation settings.

        A base LM may ship a repetition penalty or a temperature. Tasks that generate
        compare the two LMs, not the settings around one of them.
        """
        lm.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        return lm.eval().to(self.device)

    @property
    def base(self) -> torch.nn.Module:
        """The untouched base LM, in eval mode."""
        return self._loaded_base[0]

    @property
    def tokenizer(self):
        """The tokenizer of both."""
        return self._loaded_base[1]

    @cached_property
    def adapted(self) -> torch.nn.Module:
        """The LM inside the trained model, in eval mode."""
        # With the base LM it is compared with, in the same precision and with the same
        # attention kernel: different rounding would not be degradation.
        model, _ = load_model(
            self.config,
            self.model_file,
            base_lm=str(self.directory),
            base_lm_conf={"dtype": self.dtype},
        )
        # Trained parameters are float32. Buffers stay as they are: RoPE's are float32.
        for parameter in model.lm.parameters():
            parameter.data = parameter.data.to(resolve_dtype(self.dtype))
        return self._ready(model.lm, self.tokenizer)

    def equal_tokens(self, dropped: bool = False) -> Optional[int]:
        """Check on a sample whether the adapted model's logits equal the base LM's.

        Args:
            dropped: Drop the added layers.

        Returns:
            See `count_equal_tokens`; None without an adapted model, or if the base LM
            is not inside it.
        """
        if "adapted" not in self.sha256:
            return None
        if not dropped:
            return count_equal_tokens(self.base, self.adapted)
        try:
            with drop_added_layers(self.adapted):
                return count_equal_tokens(self.base, self.adapted)
        except ValueError:  # full fine-tuning
            return None


def count_equal_tokens(
    base: torch.nn.Module,
    adapted: torch.nn.Module,
    sequences: int = 4,
    length: int = 512,
) -> int:
    """Check whether two LMs give the same logits, bit for bit.

    Args:
        base: HF causal LM.
        adapted: HF causal LM of the same vocabulary.
        sequences: Number of random token sequences.
        length: Tokens of each sequence.

    Returns:
        The number of tokens on which the logits were equal: all of them, or 0.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = base.get_input_embeddings().num_embeddings
    tokens = torch.randint(vocabulary, (sequences, length), generator=generator)
    with torch.inference_mode():
        for row in tokens.to(next(base.parameters()).device):
            inputs = dict(input_ids=row[None], use_cache=False)
            if not torch.equal(base(**inputs).logits, adapted(**inputs).logits):
                return 0
    return tokens.numel()
