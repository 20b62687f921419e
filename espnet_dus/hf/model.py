"""A trained model as one Hugging Face model, base LM included.

    input_features -> speech embedder -+
                                       v
    input_ids (prompt, text)  -> [speech][text] -> LM with inserted layers -> logits

Dimensions: B utterances, F frames, M features, N text positions, T positions of the
joined sequence, V vocabulary.
"""

import copy
from typing import Any, Dict, Optional, Tuple, Union

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import (
    RelPositionalEncoding,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from espnet_dus.model.ctc_compression import CTCCompression
from espnet_dus.model.sequence import join
from espnet_dus.model.speech_embedder import SpeechEmbedder
from espnet_dus.model.upscaling import SpeechMaskMixin, inserted_layers, upscale


class DUSConfig(PreTrainedConfig):
    """What an exported model is made of.

    Args:
        text_config: The base LM's configuration, or that as a dictionary.
        depth_up_scaling: `kind`, `scope`, `positions` and `layer_conf` of the inserted
            layers (see `upscale`), or None where there are none.
        input_size: Features per frame (M).
        speech_embedder_conf: Other options of `SpeechEmbedder`.
        num_prompt_embeddings: Positions of the prompt whose embeddings were trained: so
            many first ones of the text behind speech. 0: its tokens' own serve.
        ctc_compression: `token_ids` and `embedding_rms` of `CTCCompression`, or None
            where the LM reads every speech position.
        base_lm: The base LM's name, revision and sha256, for the record.
        kwargs: Those of every Hugging Face configuration.
    """

    model_type = "espnet_dus"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: Union[PreTrainedConfig, Dict[str, Any], None] = None,
        depth_up_scaling: Optional[Dict[str, Any]] = None,
        input_size: int = 80,
        speech_embedder_conf: Optional[Dict[str, Any]] = None,
        num_prompt_embeddings: int = 0,
        ctc_compression: Optional[Dict[str, Any]] = None,
        base_lm: Optional[Dict[str, str]] = None,
        **kwargs: Any,
    ):
        if text_config is None:
            text_config = {"model_type": "llama"}
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.depth_up_scaling = depth_up_scaling
        self.input_size = input_size
        self.speech_embedder_conf = speech_embedder_conf or {}
        self.num_prompt_embeddings = num_prompt_embeddings
        self.ctc_compression = ctc_compression
        self.base_lm = base_lm or {}
        kwargs.setdefault("tie_word_embeddings", text_config.tie_word_embeddings)
        super().__init__(**kwargs)


class DUSForCausalLM(PreTrainedModel):
    """The LM with its inserted layers, and the speech embedder in front of it."""

    config_class = DUSConfig
    main_input_name = "input_features"

    def __init__(self, config: DUSConfig):
        super().__init__(config)
        # a copy: the insertion raises the number of layers in it
        self.lm = AutoModelForCausalLM.from_config(copy.deepcopy(config.text_config))
        if config.depth_up_scaling is not None:
            options = dict(config.depth_up_scaling)
            upscale(self.lm, **options.pop("layer_conf", {}), **options)
        self.lm.generation_config = GenerationConfig(
            eos_token_id=config.eos_token_id, pad_token_id=config.eos_token_id
        )
        # embedding_rms: where training starts; the weights are loaded
        self.speech_embedder = SpeechEmbedder(
            config.input_size,
            self.lm.config.hidden_size,
            embedding_rms=1.0,
            **config.speech_embedder_conf,
        )
        self.prompt_embeddings = None
        if num_prompt := config.num_prompt_embeddings:
            self.prompt_embeddings = torch.nn.Parameter(
                torch.zeros(num_prompt, self.lm.config.hidden_size)
            )
        self.compression = self.ctc_head = None
        if config.ctc_compression is not None:
            self.compression = CTCCompression(**config.ctc_compression)
            self.ctc_head = torch.nn.Linear(
                self.lm.config.hidden_size, len(self.compression.token_ids)
            )
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any):
        """As Hugging Face's."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for module in model.modules():
            # Hugging Face builds models without memory, and this table is no buffer
            # that it knows of: it is made anew at the first use.
            if isinstance(module, RelPositionalEncoding):
                module.pe = None
        return loaded

    def get_input_embeddings(self) -> torch.nn.Module:
        """Give the LM's token embeddings."""
        return self.lm.get_input_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor,
        input_features: Optional[torch.Tensor] = None,
        feature_lengths: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits (B, T, V).

        Args:
            input_ids: (B, N) text, behind the speech where there is some.
            input_features: (B, F, M), or None for text alone.
            feature_lengths: (B,) frames of each utterance.
            attention_mask: (B, N), 1 on real tokens, which stand at the left.
            kwargs: Those of the LM.

        Returns:
            What the LM gives. With speech, each utterance is [speech][text][padding].
        """
        if input_features is None:
            return self.lm(input_ids, attention_mask=attention_mask, **kwargs)
        joined = self._join(
            input_ids, input_features, feature_lengths, attention_mask, "right"
        )
        return self.lm(**joined, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        input_features: Optional[torch.Tensor] = None,
        feature_lengths: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Generate as the LM does, behind speech and prompt; see `forward`.

        Returns:
            Token ids: with speech, the new ones only.
        """
        if input_features is None:
            return self.lm.generate(input_ids, attention_mask=attention_mask, **kwargs)
        joined = self._join(
            input_ids, input_features, feature_lengths, attention_mask, "left"
        )
        return self.lm.generate(**joined, **kwargs)

    def _join(
        self, input_ids, input_features, feature_lengths, attention_mask, pad_side
    ) -> Dict[str, torch.Tensor]:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        dtype = self.get_input_embeddings().weight.dtype
        speech_BSD, lengths_B = self.speech_embedder(
            input_features.to(dtype), feature_lengths
        )
        if self.compression is not None:
            speech_BSD, lengths_B = self._hear(speech_BSD, lengths_B)
        text_BND = self.get_input_embeddings()(input_ids)
        if self.prompt_embeddings is not None:
            prompt_BPD = self.prompt_embeddings.expand(len(text_BND), -1, -1)
            text_BND = torch.cat([prompt_BPD, text_BND[:, prompt_BPD.size(1) :]], dim=1)
        seq = join(speech_BSD, lengths_B, text_BND, attention_mask.sum(1), pad_side)
        joined = {
            "inputs_embeds": seq.inputs_BTD,
            "attention_mask": seq.attention_mask_BT,
        }
        if isinstance(self.lm, SpeechMaskMixin) and self.compression is None:
            joined["speech_mask"] = seq.speech_mask_BT
        return joined

    def _hear(
        self, speech_BSD: torch.Tensor, lengths_B: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Run the inserted layers alone; give what the LM reads of their output."""
        mask_BS = torch.arange(speech_BSD.size(1), device=lengths_B.device)[None]
        mask_BS = mask_BS < lengths_B[:, None]
        for layer in inserted_layers(self.lm).values():
            speech_BSD = layer(speech_BSD, speech_mask=mask_BS)
        units_BS = self.ctc_head(speech_BSD).argmax(-1)
        read_BND, read_B = self.compression(
            speech_BSD, lengths_B, units_BS, self.get_input_embeddings()
        )
        return read_BND.to(speech_BSD.dtype), read_B
