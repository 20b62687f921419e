"""The core: what training, every search and the exported model run.

    speech input -> speech embedder -+
                                     v
    [text before][speech][prompt][text] -> lower -> upper -> LM head
                                             |
                                             +-> CTC head

`lower` is the LM up to the layer that the CTC head reads, `upper` the LM above it: two
views of one LM (see `upscaling.stack`). With CTC compression `lower` is run first, on
speech alone, and `upper`, which then is the base LM, reads one vector for each
recognized unit instead of the speech positions.

Dimensions: B utterances, S speech positions, R positions that the LM reads of the
speech, N text positions, P prompt positions, T positions of the joined sequence, D
hidden, U CTC units.
"""

import copy
from contextlib import nullcontext
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from transformers import GenerationConfig

from espnet_dus.data.lengths import LENGTH_MULTIPLE
from espnet_dus.model.adaptation import drop_added_layers, has_base_lm
from espnet_dus.model.ctc_compression import CTCCompression
from espnet_dus.model.ctc_head import CTCHead
from espnet_dus.model.sequence import Joined, Part, join
from espnet_dus.model.upscaled_lm import MODES, UpscaledLM
from espnet_dus.model.upscaling import ctc_layer_index, is_encoder, stack

# Token ids (B, N), padded on the right, and their lengths (B,)
TextBefore = Tuple[torch.Tensor, torch.Tensor]


class Encoded(NamedTuple):
    """The speech of a batch, as a search starts from it.

    Attributes:
        read_BRD: What the LM reads of the speech, padded on the right.
        read_B: Number of these positions: speech positions or, where these are
            compressed, recognized units.
        lengths_B: Number of speech positions.
        ctc_BSU: Log-probabilities of the CTC units, or None where none were asked for.
        before: Text before the speech, see `SpeechLM.join_text`.
    """

    read_BRD: torch.Tensor
    read_B: torch.Tensor
    lengths_B: torch.Tensor
    ctc_BSU: Optional[torch.Tensor]
    before: Optional[TextBefore] = None


class SpeechLM(torch.nn.Module):
    """An adapted LM with speech input.

    Args:
        lm: The adapted LM (see `adaptation.adapt`).
        speech_embedder: Speech input (features or tokens) and its lengths to the LM's
            embedding space: (B, S, D) and (B,).
        prompt_ids: Token ids of the text between speech and transcript.
        eos_id: Token id that ends a transcript.
        compute_dtype: Precision that the base LM was loaded in; see `autocast`.
        prompt_tuning: Train the embeddings of the prompt, starting from those of its
            text (Lester et al., arXiv 2104.08691), so that a frozen LM learns to
            transcribe. Text-only inputs never use them.
        ctc: The CTC head, or None.
        ctc_layer: The layer that the CTC head reads, see `upscaling.ctc_layer_index`.
        compression: Turns speech positions into recognized units, or None.
        module_args: For the next class in the order of inheritance.

    Attributes:
        generation_config: The base LM's own generation settings, for text. Those of
            `lm` are neutral: no search takes sampling or penalties from them.

    Raises:
        ValueError: Contradictory options.
    """

    def __init__(
        self,
        lm: torch.nn.Module,
        speech_embedder: torch.nn.Module,
        prompt_ids: Sequence[int],
        eos_id: int,
        compute_dtype: torch.dtype,
        prompt_tuning: bool = False,
        ctc: Optional[CTCHead] = None,
        ctc_layer: str = "inserted:-1",
        compression: Optional[CTCCompression] = None,
        **module_args: Any,
    ):
        super().__init__(**module_args)
        self.generation_config = _with_end(lm.generation_config, eos_id)
        lm.generation_config = GenerationConfig()
        self.lm = lm
        self.speech_embedder = speech_embedder
        self.prompt_ids: List[int] = list(prompt_ids)
        self.eos_id = eos_id
        self.compute_dtype = compute_dtype
        self.ctc = ctc
        self.ctc_layer = None if ctc is None else ctc_layer_index(lm, ctc_layer)
        # added layers that are the encoder of an encoder-decoder, up to the CTC head
        self.has_encoder = is_encoder(lm) and self.ctc_layer == (
            len(lm.config.depth_up_scaling["positions"]) - 1
        )
        if compression is not None and not self.has_encoder:
            raise ValueError(
                "ctc_compression: the LLM reads what the CTC head has heard, so "
                "all inserted layers must be of scope speech and be placed before the "
                "first base layer (positions -1), with ctc_layer inserted:-1"
            )
        self.compression = compression
        self.prompt_embeddings: Optional[torch.nn.Parameter] = None
        if prompt_tuning:
            if not self.prompt_ids:
                raise ValueError("prompt_tuning: the prompt has no token to start from")
            embed = lm.get_input_embeddings()
            ids_P = torch.tensor(self.prompt_ids, device=embed.weight.device)
            self.prompt_embeddings = torch.nn.Parameter(embed(ids_P).detach().float())

    def autocast(self) -> torch.autocast:
        """Compute the trained float32 parts in the precision the base LM came in."""
        reduced = self.compute_dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(
            self.lm.device.type, dtype=self.compute_dtype, enabled=reduced
        )

    # -- the sequence ------------------------------------------------------------------

    def join_text(
        self,
        read_BRD: torch.Tensor,
        read_B: torch.Tensor,
        text_BN: torch.Tensor,
        text_lengths_B: torch.Tensor,
        pad_side: str = "right",
        before: Optional[TextBefore] = None,
    ) -> Joined:
        """Join [text before][speech][prompt][text].

        Args:
            read_BRD: What the LM reads of the speech.
            read_B: Number of these positions.
            text_BN: Token ids, padded on the right; N may be 0.
            text_lengths_B: (B,).
            pad_side: `right` (training) or `left` (generation).
            before: Token ids (B, N'), padded on the right, and lengths (B,) of the text
                before the speech, or None.
        """
        embed = self.lm.get_input_embeddings()
        dtype = embed.weight.dtype
        prompt_PD = self.prompt_embeddings
        if prompt_PD is None:
            prompt_PD = embed(text_BN.new_tensor(self.prompt_ids))
        prompt_BPD = prompt_PD.to(dtype).expand(len(text_BN), -1, -1)
        text_BND = embed(text_BN.clamp(min=0))
        return join(
            read_BRD.to(dtype),
            read_B,
            torch.cat([prompt_BPD, text_BND], dim=1),
            text_lengths_B + len(self.prompt_ids),
            pad_side,
            LENGTH_MULTIPLE if pad_side == "right" else 1,
            self._embedded(before),
        )

    def up_to_speech(
        self,
        speech_BSD: torch.Tensor,
        lengths_B: torch.Tensor,
        before: Optional[TextBefore] = None,
    ) -> Joined:
        """Return [text before][speech], right-padded, for `lower`: see `join_text`."""
        speech_BSD = speech_BSD.to(self.lm.get_input_embeddings().weight.dtype)
        none = speech_BSD[:, :0], torch.zeros_like(lengths_B)
        before = self._embedded(before)
        return join(speech_BSD, lengths_B, *none, "right", LENGTH_MULTIPLE, before)

    def _embedded(self, text: Optional[TextBefore]) -> Optional[Part]:
        if text is None:
            return None
        ids_BN, lengths_B = text
        return self.lm.get_input_embeddings()(ids_BN.clamp(min=0)), lengths_B

    # -- the stack ---------------------------------------------------------------------

    def lower(self, seq: Joined) -> torch.Tensor:
        """Run the LM up to the layer that the CTC head reads, on right-padded input.

        Returns:
            That layer's output (B, T, D); without a CTC head the input.
        """
        if self.ctc_layer is None:
            return seq.inputs_BTD
        view = stack(self.lm, 0, self.ctc_layer + 1, norm=False)
        return self._run(view, seq.inputs_BTD, seq)

    def upper(self, hidden_BTD: torch.Tensor, seq: Joined) -> torch.Tensor:
        """Run the LM above that layer, on right-padded input.

        Args:
            hidden_BTD: What `lower` returned or, with an encoder below, the sequence
                that the base LM reads.
            seq: Where the speech is.

        Returns:
            Hidden states (B, T, D) after the final norm.
        """
        first = 0 if self.ctc_layer is None else self.ctc_layer + 1
        return self._run(stack(self.lm, first), hidden_BTD, seq)

    def _run(self, view, hidden_BTD, seq: Joined) -> torch.Tensor:
        # Causal layers never look at padding on the right, and the others go by the
        # speech mask: no attention mask, so that the fast kernels can be used.
        return view(
            inputs_embeds=hidden_BTD,
            speech_mask=seq.speech_mask_BT,
            **(seq.packing or {}),
        ).last_hidden_state

    def hear(
        self,
        speech_BSD: torch.Tensor,
        lengths_B: torch.Tensor,
        before: Optional[TextBefore] = None,
    ) -> torch.Tensor:
        """Run `lower` up to the speech's end: what the CTC head reads (B, S, D)."""
        seq = self.up_to_speech(speech_BSD, lengths_B, before)
        return seq.of_speech(self.lower(seq), speech_BSD.size(1))

    def compress(
        self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return what the LM reads of the CTC layer's output: (B, R, D) and (B,)."""
        units_BS = self.ctc.best_units(hidden_BSD)
        embed = self.lm.get_input_embeddings()
        return self.compression(hidden_BSD, lengths_B, units_BS, embed)

    # -- inference ---------------------------------------------------------------------

    def encode(
        self,
        speech_BSD: torch.Tensor,
        lengths_B: torch.Tensor,
        with_ctc: bool = False,
        before: Optional[TextBefore] = None,
    ) -> Encoded:
        """Prepare embedded speech for a search.

        An encoder below the base LM runs here, once, so that a search over many
        hypotheses or with a draft runs the base LM alone.

        Args:
            speech_BSD: Speech embeddings.
            lengths_B: (B,).
            with_ctc: Return the CTC head's log-probabilities too.
            before: Text before the speech, see `join_text`.
        """
        if not with_ctc and not self.has_encoder:
            return Encoded(speech_BSD, lengths_B, lengths_B, None, before)
        hidden_BSD = self.hear(speech_BSD, lengths_B, before)
        read_BRD, read_B = speech_BSD, lengths_B
        if self.compression is not None:
            read_BRD, read_B = self.compress(hidden_BSD, lengths_B)
        elif self.has_encoder:
            read_BRD = hidden_BSD
        ctc_BSU = self.ctc.log_probs(hidden_BSD) if with_ctc else None
        return Encoded(read_BRD, read_B, lengths_B, ctc_BSU, before)

    def prefix(self, encoded: Encoded) -> Tuple[Joined, Dict[str, torch.Tensor]]:
        """Return what precedes the transcript, padded on the left.

        Args:
            encoded: The speech, and the text before it.

        Returns:
            [text before][speech][prompt], and the masks (B, T) that the LM takes with
            it: `attention_mask` and, where added layers need it, `speech_mask`.
        """
        read_B = encoded.read_B
        none = read_B.new_zeros((len(read_B), 0)), torch.zeros_like(read_B)
        seq = self.join_text(encoded.read_BRD, read_B, *none, "left", encoded.before)
        return seq, self.masks(seq)

    def masks(self, seq: Joined) -> Dict[str, torch.Tensor]:
        """Return the masks that the LM takes with a sequence of encoded speech."""
        masks = {"attention_mask": seq.attention_mask_BT}
        # to the layers above an encoder, its output is text
        if isinstance(self.lm, UpscaledLM) and not self.has_encoder:
            masks["speech_mask"] = seq.speech_mask_BT
        return masks

    @torch.no_grad()
    def generate_text(
        self,
        ids_BN: torch.Tensor,
        added_layers: str = "auto",
        attention_mask: Optional[torch.Tensor] = None,
        **generation: Any,
    ) -> torch.Tensor:
        """Continue text that has no speech in it.

        Args:
            ids_BN: Token ids.
            added_layers: `kept`; `dropped`, which gives the base LM's own text; or
                `auto`, which is `dropped` in every arm but `full`, where the base LM
                is overwritten.
            attention_mask: (B, N), 1 on real tokens; None: all are.
            generation: Options of Hugging Face's `generate`, where they differ from
                the base LM's own.

        Returns:
            Token ids, those given included.

        Raises:
            ValueError: `added_layers` is unknown, or `dropped` in the arm `full`.
        """
        if added_layers not in MODES:
            raise ValueError(
                f"added_layers: {added_layers!r} is not one of {', '.join(MODES)}"
            )
        if added_layers == "auto":
            added_layers = "dropped" if has_base_lm(self.lm) else "kept"
        if attention_mask is None:
            attention_mask = torch.ones_like(ids_BN)
        drop = added_layers == "dropped"
        with drop_added_layers(self.lm) if drop else nullcontext():
            return self._generate(
                generation, input_ids=ids_BN, attention_mask=attention_mask
            )

    @torch.no_grad()
    def generate_answer(
        self,
        encoded: Encoded,
        before_1N: torch.Tensor,
        behind_1N: torch.Tensor,
        **generation: Any,
    ) -> torch.Tensor:
        """Continue [text before][speech][text behind], without the trained prompt.

        Args:
            encoded: The speech of one utterance.
            before_1N: Token ids of an instruction, with its examples.
            behind_1N: Token ids of what ends the user's turn.
            generation: See `generate_text`.

        Returns:
            The new token ids (1, N).
        """
        embed = self.lm.get_input_embeddings()
        parts = [
            (embed(ids_1N), ids_1N.new_tensor([ids_1N.size(1)]))
            for ids_1N in (before_1N, behind_1N)
        ]
        read_BRD = encoded.read_BRD.to(embed.weight.dtype)
        seq = join(read_BRD, encoded.read_B, *parts[1], "left", before=parts[0])
        return self._generate(
            generation, inputs_embeds=seq.inputs_BTD, **self.masks(seq)
        )

    def _generate(self, generation: Dict[str, Any], **inputs: Any) -> torch.Tensor:
        """Generate by the base LM's own settings, except for those given."""
        config = generation.pop("generation_config", None) or self.generation_config
        config = copy.deepcopy(config)
        # the rest, such as a streamer, are arguments of `generate`
        arguments = config.update(**generation)
        with self.autocast():
            return self.lm.generate(**inputs, generation_config=config, **arguments)


def _with_end(config: GenerationConfig, eos_id: int) -> GenerationConfig:
    """Return generation settings whose end tokens include the tokenizer's."""
    config = copy.deepcopy(config)
    ends = config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if eos_id not in ends:
        config.eos_token_id = [*ends, eos_id]
    if config.pad_token_id is None:
        config.pad_token_id = eos_id
    return config
