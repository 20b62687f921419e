"""A trained model as one Hugging Face model, base LM included.

    input_features -> speech embedder -+
                                       v
                  input_ids -> [speech][prompt][text] -> LM with added layers -> logits

The computation is `SpeechLM`'s, the same that training and every search run.

Dimensions: B utterances, F frames, M features, N text positions, T positions of the
joined sequence, V vocabulary.
"""

import copy
from contextlib import nullcontext
from typing import Any, Dict, Optional, Sequence, Union

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import (
    RelPositionalEncoding,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from espnet_dus.model.adaptation import drop_added_layers
from espnet_dus.model.ctc_compression import CTCCompression
from espnet_dus.model.ctc_head import CTCHead
from espnet_dus.model.sequence import Joined
from espnet_dus.model.speech_embedder import SpeechEmbedder
from espnet_dus.model.speech_lm import Encoded, SpeechLM
from espnet_dus.model.token_embedder import TokenEmbedder
from espnet_dus.model.upscaled_lm import UpscaledLM
from espnet_dus.model.upscaling import upscale


class DUSConfig(PreTrainedConfig):
    """The configuration of an exported model.

    Args:
        text_config: The base LM's configuration, or that as a dictionary.
        depth_up_scaling: `kind`, `scope`, `positions` and `layer_conf` of the added
            layers (see `upscale`), or None where there are none.
        input_size: Features per frame (M); None where the input is speech tokens.
        token_vocab_sizes: Number of different speech tokens of each stream; None where
            the input is features.
        speech_tokenizer: Name and sha256 of the speech tokenizer, for the record.
        speech_embedder_conf: Other options of `SpeechEmbedder` or `TokenEmbedder`.
        prompt_ids: Token ids of the prompt between speech and text.
        prompt_tuning: The embeddings of the prompt were trained.
        ctc_compression: `token_ids` and `embedding_rms` of `CTCCompression`, or None
            where the LM reads every speech position.
        base_lm: The base LM's name, revision and sha256, for the record.
        added_layers: Where the added layers act unless `forward` or `generate` are told
            otherwise: `kept`, `dropped`, or `auto`, where text alone is the base LM's.
        kwargs: Those of every Hugging Face configuration.
    """

    model_type = "espnet_dus"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: Union[PreTrainedConfig, Dict[str, Any], None] = None,
        depth_up_scaling: Optional[Dict[str, Any]] = None,
        input_size: Optional[int] = 80,
        token_vocab_sizes: Optional[Sequence[int]] = None,
        speech_tokenizer: Optional[Dict[str, str]] = None,
        speech_embedder_conf: Optional[Dict[str, Any]] = None,
        prompt_ids: Sequence[int] = (),
        prompt_tuning: bool = False,
        ctc_compression: Optional[Dict[str, Any]] = None,
        base_lm: Optional[Dict[str, str]] = None,
        added_layers: str = "auto",
        **kwargs: Any,
    ):
        if text_config is None:
            text_config = {"model_type": "llama"}
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.depth_up_scaling = depth_up_scaling
        self.input_size = input_size
        self.token_vocab_sizes = token_vocab_sizes
        self.speech_tokenizer = speech_tokenizer
        self.speech_embedder_conf = speech_embedder_conf or {}
        self.prompt_ids = list(prompt_ids)
        self.prompt_tuning = prompt_tuning
        self.ctc_compression = ctc_compression
        self.base_lm = base_lm or {}
        self.added_layers = added_layers
        kwargs.setdefault("tie_word_embeddings", text_config.tie_word_embeddings)
        super().__init__(**kwargs)


class DUSForCausalLM(SpeechLM, PreTrainedModel, GenerationMixin):
    """The LM with its added layers, and the speech embedder in front of it."""

    config_class = DUSConfig
    main_input_name = "input_features"
    supports_gradient_checkpointing = True

    def __init__(self, config: DUSConfig):
        # a copy: the conversion raises the number of layers in it
        lm = AutoModelForCausalLM.from_config(copy.deepcopy(config.text_config))
        if config.depth_up_scaling is not None:
            options = dict(config.depth_up_scaling)
            upscale(lm, **options.pop("layer_conf", {}), **options)
        hidden_size = lm.config.hidden_size
        ctc = compression = None
        if config.ctc_compression is not None:
            compression = CTCCompression(**config.ctc_compression)
            ctc = CTCHead(hidden_size, len(compression.token_ids), has_norm=False)
        super().__init__(
            lm,
            _embedder(config, hidden_size),
            prompt_ids=config.prompt_ids,
            eos_id=config.eos_token_id,
            compute_dtype=torch.float32,  # no autocast
            prompt_tuning=config.prompt_tuning,
            ctc=ctc,
            compression=compression,
            config=config,
        )
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any):
        """As Hugging Face's."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.depth_up_scaling is None:
            model.lm.requires_grad_(False)  # arm frozen
        for module in model.modules():
            # Hugging Face builds models without memory, and this table is not a buffer
            # that it knows of: it is built again at the first use.
            if isinstance(module, RelPositionalEncoding):
                module.pe = None
        return loaded

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the LM's token embeddings."""
        return self.lm.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Replace the LM's token embeddings, with another number of them if resized."""
        self.lm.set_input_embeddings(value)
        self.lm.config.vocab_size = value.num_embeddings

    def get_output_embeddings(self) -> torch.nn.Module:
        """Return the LM head."""
        return self.lm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: torch.nn.Module) -> None:
        """Replace the LM head."""
        self.lm.set_output_embeddings(new_embeddings)

    def forward(
        self,
        input_ids: Optional[torch.Tensor] = None,
        input_features: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits (B, T, V).

        Args:
            input_ids: (B, N) text, after speech and prompt where there is speech; then
                it is padded on the right.
            input_features: (B, F, M), speech tokens (B, F, streams), or None for text
                alone.
            attention_mask: 1 on real frames (B, F) or, for text alone, on real tokens
                (B, N). None: all are.
            kwargs: The LM's, such as `added_layers` (see `DUSConfig`).

        Returns:
            What the LM returns. With speech, each row is [speech][prompt][text][pad].

        Raises:
            ValueError: Speech with `labels`.
        """
        if isinstance(self.lm, UpscaledLM):
            kwargs.setdefault("added_layers", self.config.added_layers)
        if input_features is not None and kwargs.get("labels") is not None:
            raise ValueError(
                "labels: the loss is computed for text alone; with speech, compute it "
                "from the logits, or train with the recipe"
            )
        if input_features is None:
            return self.lm(input_ids, attention_mask=attention_mask, **kwargs)
        encoded = self._encode(input_features, attention_mask)
        seq = self._join(encoded, input_ids, "right")
        return self.lm(inputs_embeds=seq.inputs_BTD, **self.masks(seq), **kwargs)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Optional[torch.Tensor] = None,
        input_features: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        added_layers: Optional[str] = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Generate as the LM does, after speech and prompt; see `forward`.

        Text alone is generated by the base LM's own settings. A transcript is generated
        greedily unless `kwargs` say otherwise, with at most one token for each speech
        position.

        Args:
            input_ids: (B, N).
            input_features: As in `forward`.
            attention_mask: As in `forward`.
            added_layers: See `DUSConfig`; None: as there.
            kwargs: Those of Hugging Face's `generate`.

        Returns:
            Token ids: with speech, the new ones only.

        Raises:
            ValueError: Speech with `assistant_model`.
        """
        added_layers = added_layers or self.config.added_layers
        if input_features is None:
            return self.generate_text(input_ids, added_layers, attention_mask, **kwargs)
        if kwargs.get("assistant_model") is not None:
            raise ValueError(
                "assistant_model: an assistant cannot read the speech; "
                "prompt_lookup_num_tokens works with speech"
            )
        encoded = self._encode(input_features, attention_mask)
        seq = self._join(encoded, input_ids, "left")
        kwargs.setdefault("eos_token_id", self.eos_id)
        kwargs.setdefault("pad_token_id", self.eos_id)
        if not {"max_length", "generation_config"} & set(kwargs):
            most = int(encoded.lengths_B.max())
            kwargs["max_new_tokens"] = min(kwargs.get("max_new_tokens", most), most)
        with drop_added_layers(self.lm) if added_layers == "dropped" else nullcontext():
            return self.lm.generate(
                inputs_embeds=seq.inputs_BTD, **self.masks(seq), **kwargs
            )

    def _encode(
        self, input_features: torch.Tensor, attention_mask: Optional[torch.Tensor]
    ) -> Encoded:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_features[..., 0])
        lengths_B = attention_mask.sum(1).long()
        if input_features.is_floating_point():
            dtype = self.get_input_embeddings().weight.dtype
            input_features = input_features.to(dtype)
        return self.encode(*self.speech_embedder(input_features, lengths_B))

    def _join(
        self, encoded: Encoded, input_ids: Optional[torch.Tensor], pad_side: str
    ) -> Joined:
        if input_ids is None:
            shape = len(encoded.read_B), 0
            input_ids = encoded.read_B.new_zeros(shape, dtype=torch.long)
        # padding after the text is text to the LM: nothing before it looks at it
        lengths_B = torch.full_like(encoded.read_B, input_ids.size(1))
        return self.join_text(
            encoded.read_BRD, encoded.read_B, input_ids, lengths_B, pad_side
        )


def _embedder(config: DUSConfig, hidden_size: int) -> torch.nn.Module:
    conf = config.speech_embedder_conf
    if config.token_vocab_sizes is not None:
        return TokenEmbedder(config.token_vocab_sizes, hidden_size, **conf)
    # embedding_rms: where training starts; the weights are loaded
    return SpeechEmbedder(config.input_size, hidden_size, embedding_rms=1.0, **conf)
