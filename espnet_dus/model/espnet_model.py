"""The whole model: frontend, speech embedder, adapted LM, losses.

    speech -> features -> SpecAug, normalization -> speech embedder -+
                                                                     v
    [speech][prompt][transcript] -> base LM with inserted layers -> LM head -> CE loss
                                          | output of one layer
                                          +-> CTC head -> CTC loss

With `ctc_compression` the inserted layers are run first, on speech alone, and the base
LM reads [units heard][prompt][transcript].

Dimensions: B utterances, S speech positions, N transcript tokens or units heard, T
positions of the joined sequence, D hidden, V vocabulary, M target positions of the
batch.
"""

import logging
from contextlib import nullcontext
from typing import Callable, Dict, List, Optional
from typing import Sequence as Several
from typing import Tuple

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from transformers import GenerationConfig

from espnet_dus.data.ctc_units import CTCUnits
from espnet_dus.data.lengths import LENGTH_MULTIPLE
from espnet_dus.model.base_lm import Identity, embedding_rms
from espnet_dus.model.checkpoint import keep_only_trained, parameter_counts
from espnet_dus.model.ctc_compression import CTCCompression
from espnet_dus.model.ctc_head import CTCHead
from espnet_dus.model.features import extract_features
from espnet_dus.model.sequence import Sequence, join
from espnet_dus.model.speech_embedder import SpeechEmbedder
from espnet_dus.model.text_retention import TextRetention
from espnet_dus.model.upscaling import ctc_layer_index, is_encoder, layer_output


class ESPnetDUSModel(AbsESPnetModel):
    """Speech recognition by an adapted text LLM.

    Args:
        lm: The adapted LM (see `adaptation.adapt`).
        tokenizer: The base LM's.
        identity: The base LM's.
        frontend: Raw speech to features, or None where the input is features.
        specaug: SpecAugment or None.
        normalize: Normalization of features or None.
        speech_embedder: Features to the LM's embedding space.
        ctc: The CTC head, or None.
        ctc_units: Its units.
        compute_dtype: The precision the base LM was loaded in; see `autocast`.
        prompt: Text between speech and transcript.
        prompt_tuning: Train the embeddings of the prompt, from those of its text on
            (Lester et al., arXiv 2104.08691): a frozen LM is to learn that it should
            repeat what it hears. Text alone does not meet them.
        ctc_layer: The layer it reads, see `ctc.ctc_layer_index`.
        ctc_weight: Its share of the loss; the cross-entropy has the rest.
        ctc_warmup_epochs: That many first epochs train CTC alone. The forward pass then
            stops at `ctc_layer`, so that the layers above cost nothing.
        ctc_compression: The LLM reads one vector for each unit that the CTC head hears
            (see `ctc_compression`), not one for each speech position. For inserted
            layers of scope `speech` that all stand before the first base layer, with
            the CTC head on the last of them.
        lsm_weight: Label smoothing of the cross-entropy.
        text_retention_weight: Weight of what keeps text as the base LM has it (see
            `text_retention`), beside the other losses. For inserted layers of scope
            `all`; in scope `speech` text is the base LM's without it.

    Raises:
        ValueError: Contradictory options.
    """

    def __init__(
        self,
        lm: torch.nn.Module,
        tokenizer,
        identity: Identity,
        frontend: Optional[torch.nn.Module],
        specaug: Optional[torch.nn.Module],
        normalize: Optional[torch.nn.Module],
        speech_embedder: SpeechEmbedder,
        ctc: Optional[CTCHead],
        ctc_units: Optional[CTCUnits],
        compute_dtype: torch.dtype,
        prompt: str = "",
        prompt_tuning: bool = False,
        ctc_layer: str = "inserted:-1",
        ctc_weight: float = 0.3,
        ctc_warmup_epochs: int = 0,
        ctc_compression: bool = False,
        lsm_weight: float = 0.0,
        text_retention_weight: float = 0.0,
        extract_feats_in_collect_stats: bool = True,
    ):
        super().__init__()
        if not 0 <= ctc_weight <= 1:
            raise ValueError(f"ctc_weight: {ctc_weight} is not in [0, 1]")
        if ctc is None and (ctc_weight > 0 or ctc_warmup_epochs > 0):
            raise ValueError(
                f"ctc_weight is {ctc_weight} and ctc_warmup_epochs "
                f"{ctc_warmup_epochs}, but there is no CTC head: give --ctc_units "
                "(stage 5 makes them)"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError("the base LM's tokenizer has no EOS token")
        # the base LM's own may ask for sampling or penalties, and `generate` would take
        # from it whatever a search leaves open
        lm.generation_config = GenerationConfig()
        self.lm = lm
        self.tokenizer = tokenizer
        self.identity = identity
        self.compute_dtype = compute_dtype
        self.frontend = frontend
        self.specaug = specaug
        self.normalize = normalize
        self.speech_embedder = speech_embedder
        self.ctc = ctc
        self.ctc_units = ctc_units
        self.ctc_layer = None if ctc is None else ctc_layer_index(lm, ctc_layer)
        # inserted layers that are the encoder of an encoder-decoder, up to the CTC head
        self.has_encoder = is_encoder(lm) and self.ctc_layer == (
            len(lm.config.depth_up_scaling["positions"]) - 1
        )
        self.compression: Optional[CTCCompression] = None
        if ctc_compression:
            if not self.has_encoder:
                raise ValueError(
                    "ctc_compression: the LLM reads what the CTC head has heard, so "
                    "all inserted layers must be of scope speech and stand before the "
                    "first base layer (positions -1), with ctc_layer inserted:-1"
                )
            self.compression = CTCCompression(ctc_units.token_ids(), embedding_rms(lm))
        self.ctc_weight = ctc_weight
        self.ctc_warmup_epochs = ctc_warmup_epochs
        self.ctc_only = ctc_weight == 1
        self.lsm_weight = lsm_weight
        scope = getattr(lm.config, "depth_up_scaling", {}).get("scope")
        if text_retention_weight < 0 or (text_retention_weight and scope != "all"):
            raise ValueError(
                f"text_retention_weight: {text_retention_weight}; it is 0 or more, and "
                "0 where no inserted layer of scope all can change text"
            )
        self.text_retention_weight = text_retention_weight
        self.text_retention = TextRetention()
        self.extract_feats_in_collect_stats = extract_feats_in_collect_stats
        self.prompt_ids: List[int] = tokenizer(
            prompt, add_special_tokens=False
        ).input_ids
        if ctc_compression and not self.prompt_ids:
            raise ValueError(
                "ctc_compression needs a prompt: where the CTC head hears nothing, the "
                "LLM would have nothing to go on from"
            )
        self.eos_id: int = tokenizer.eos_token_id
        self.prompt_embeddings: Optional[torch.nn.Parameter] = None
        if prompt_tuning:
            if not self.prompt_ids:
                raise ValueError("prompt_tuning: the prompt has no token to start from")
            embed = lm.get_input_embeddings()
            ids_P = torch.tensor(self.prompt_ids, device=embed.weight.device)
            self.prompt_embeddings = torch.nn.Parameter(embed(ids_P).detach().float())
        counts = parameter_counts(self)
        share = counts["trained"] / max(counts["total"], 1)
        logging.info(
            f"trained parameters: {counts['trained']:,} of {counts['total']:,} "
            f"({share:.1%}), frozen: {counts['frozen']:,}"
        )
        keep_only_trained(self, "lm", identity)

    # -- modes and precision -----------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Tell the model the epoch (from 1), on which the CTC warm-up depends."""
        self.ctc_only = self.ctc_weight == 1 or epoch <= self.ctc_warmup_epochs

    def train(self, mode: bool = True) -> "ESPnetDUSModel":
        """Set training mode, but keep what is frozen in eval mode."""
        super().train(mode)
        for module in self.modules():
            own = list(module.parameters())
            if own and not any(p.requires_grad for p in own):
                module.eval()
        for module in self.lm.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = mode  # a frozen layer recomputes in this mode only
        return self

    def _apply(self, fn: Callable, recurse: bool = True) -> "ESPnetDUSModel":
        # ESPnet moves a model to --train_dtype, float32, right after it was built: the
        # frozen base LM is to keep the precision it was loaded in.
        def keep_frozen_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            frozen = isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad
            return moved.to(tensor.dtype) if frozen else moved

        return super()._apply(keep_frozen_dtype, recurse)

    def autocast(self) -> torch.autocast:
        """Compute the trained float32 parts in the precision the base LM came in."""
        reduced = self.compute_dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(
            self.lm.device.type, dtype=self.compute_dtype, enabled=reduced
        )

    # -- training ----------------------------------------------------------------------

    def forward(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        text_ctc: Optional[torch.Tensor] = None,
        text_ctc_lengths: Optional[torch.Tensor] = None,
        loss_denominators: Optional[torch.Tensor] = None,
        **_,
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor], torch.Tensor]:
        """Compute the loss of a batch.

        The losses are sums over tokens, divided by the number of tokens: those of this
        batch, or `loss_denominators` where several batches make an update. The mean of
        the batches' losses and gradients is then that of one big batch.

        Args:
            speech: (B, samples) or, as features, (B, F, M).
            speech_lengths: (B,).
            text: (B, N) token ids of the base LM, padded at the right.
            text_lengths: (B,).
            text_ctc: (B, N') CTC unit ids.
            text_ctc_lengths: (B,).
            loss_denominators: (2,) mean numbers of target tokens and of CTC units in a
                batch of the update (see `training.accumulation`).

        Returns:
            The loss, statistics for the log, and 1 as the batch's weight.
        """
        sums = self.loss_sums(
            speech, speech_lengths, text, text_lengths, text_ctc, text_ctc_lengths
        )
        counts = {name: count for name, (_, count) in sums.items()}
        if loss_denominators is not None:
            targets, units = loss_denominators
            counts.update(loss_ce=targets, acc=targets, loss_ctc=units)
        means = {name: total / counts[name] for name, (total, _) in sums.items()}
        loss = self.combine(means)
        stats = {name: mean.detach() for name, mean in means.items()}
        stats.update(loss=loss.detach())
        return force_gatherable((loss, stats, 1), loss.device)

    def loss_sums(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        text_ctc: Optional[torch.Tensor] = None,
        text_ctc_lengths: Optional[torch.Tensor] = None,
        **_,
    ) -> Dict[str, Tuple[torch.Tensor, torch.Tensor]]:
        """Sum the losses and statistics of a batch.

        Args:
            speech: As in `forward`, like the others.

        Returns:
            Sum and number of its terms, by name: `loss_ce` and `acc` over transcript
            tokens and EOS, `loss_ctc` over CTC units, `wer_ctc` (in evaluation) over
            words, `text_drift` as it is. With CTC alone there is no `loss_ce`.
        """
        sums: Dict[str, Tuple[torch.Tensor, torch.Tensor]] = {}
        with self.autocast():
            speech_BSD, lengths_B = self.embed_speech(speech, speech_lengths)
            read_BND, read_B = speech_BSD, lengths_B  # what the LLM reads
            ctc_BSD = None
            if self.ctc_only or self.compression is not None:
                ctc_BSD = self.run_to_ctc_layer(speech_BSD, lengths_B)
            if self.compression is not None and not self.ctc_only:
                read_BND, read_B = self.compress(ctc_BSD, lengths_B)
            if not self.ctc_only:
                seq = self.join_text(read_BND, read_B, text, text_lengths)
                hidden_BTD, captured_BTD = self.run_lm(seq)
                if self.compression is None:
                    ctc_BSD = captured_BTD  # speech stands first
        targets = text_lengths.sum() + len(text_lengths)
        if not self.ctc_only:
            ce, hits = self._cross_entropy(hidden_BTD, read_B, text, text_lengths)
            sums.update(loss_ce=(ce, targets), acc=(hits, targets))
        else:
            # no token was predicted: such an epoch is never the best by accuracy
            sums.update(acc=(torch.zeros((), device=targets.device), targets))
        if self.ctc is not None and (self.ctc_weight > 0 or self.ctc_only):
            ctc_BSD = ctc_BSD[:, : speech_BSD.size(1)]
            units = text_ctc, text_ctc_lengths
            sums.update(loss_ctc=self.ctc(ctc_BSD, lengths_B, *units))
            if not self.training:
                sums.update(wer_ctc=self._ctc_errors(ctc_BSD, lengths_B, *units))
        if self.training and self.text_retention_weight:
            with self.autocast():
                drift = self.text_retention(self.lm)
            sums.update(text_drift=(drift, torch.ones_like(drift)))
        return sums

    def combine(self, means: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Weight the mean losses of `loss_sums`; return their sum, a scalar."""
        if self.ctc_only:
            loss = means["loss_ctc"]
        else:
            loss = (1 - self.ctc_weight) * means["loss_ce"]
            if "loss_ctc" in means:
                loss = loss + self.ctc_weight * means["loss_ctc"]
        if "text_drift" in means:
            loss = loss + self.text_retention_weight * means["text_drift"]
        return loss

    def collect_feats(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, **_
    ) -> Dict[str, torch.Tensor]:
        """Give features (B, F, M) and their lengths (B,)."""
        feats, lengths = extract_features(self.frontend, speech, speech_lengths)
        return {"feats": feats, "feats_lengths": lengths}

    def embed_speech(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Give speech embeddings (B, S, D) and their lengths (B,)."""
        with torch.autocast(self.lm.device.type, enabled=False):
            feats, lengths = extract_features(self.frontend, speech, speech_lengths)
            if self.specaug is not None and self.training:
                feats, lengths = self.specaug(feats, lengths)
            if self.normalize is not None:
                feats, lengths = self.normalize(feats, lengths)
        return self.speech_embedder(feats, lengths)

    def join_text(
        self,
        speech_BSD: torch.Tensor,
        lengths_B: torch.Tensor,
        text_BN: torch.Tensor,
        text_lengths_B: torch.Tensor,
        pad_side: str = "right",
    ) -> Sequence:
        """Put prompt and text behind the speech: [speech][prompt][text].

        For CTC alone (no text at all) the prompt is left out too.
        """
        embeddings = self.lm.get_input_embeddings()
        dtype = embeddings.weight.dtype
        text_BND = embeddings(text_BN.clamp(min=0))
        if not self.ctc_only:
            prompt_PD = self.prompt_embeddings
            if prompt_PD is None:
                prompt_PD = embeddings(text_BN.new_tensor(self.prompt_ids))
            prompt_BPD = prompt_PD.to(dtype).expand(len(text_BN), -1, -1)
            text_BND = torch.cat([prompt_BPD, text_BND], dim=1)
            text_lengths_B = text_lengths_B + len(self.prompt_ids)
        multiple = LENGTH_MULTIPLE if pad_side == "right" else 1
        return join(
            speech_BSD.to(dtype),
            lengths_B,
            text_BND,
            text_lengths_B,
            pad_side,
            multiple,
        )

    def run_to_ctc_layer(
        self, speech_BSD: torch.Tensor, lengths_B: torch.Tensor
    ) -> torch.Tensor:
        """Run the LM on speech alone (B, S, D), up to the layer the CTC head reads.

        Returns:
            That layer's output (B, S, D).
        """
        before, self.ctc_only = self.ctc_only, True
        try:
            none_B0 = lengths_B.new_zeros((len(lengths_B), 0))
            seq = self.join_text(
                speech_BSD, lengths_B, none_B0, torch.zeros_like(lengths_B)
            )
            _, hidden_BTD = self.run_lm(seq)
        finally:
            self.ctc_only = before
        return hidden_BTD[:, : speech_BSD.size(1)]

    def compress(
        self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Give what the LLM reads of the CTC layer's output: (B, N, D), (B,)."""
        units_BS = self.ctc.best_units(hidden_BSD)
        embeddings = self.lm.get_input_embeddings()
        return self.compression(hidden_BSD, lengths_B, units_BS, embeddings)

    def run_lm(self, seq: Sequence) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """Run the LM without its head on a right-padded sequence.

        Returns:
            Hidden states (B, T, D) after the final norm, and those of the CTC layer
            (B, T, D) or None. With `ctc_only` the former are not to be used.
        """
        # compressed speech has been through the inserted layers: they let text pass
        is_read = self.compression is not None and not self.ctc_only
        # Nothing that is causal looks at padding on the right, and what is not goes by
        # the speech mask: no attention mask, so that the fast kernels can be used.
        captured = nullcontext({})
        if self.ctc_layer is not None:
            captured = layer_output(self.lm, self.ctc_layer, end=self.ctc_only)
        with captured as of_ctc_layer:
            hidden_BTD = self.lm.model(
                inputs_embeds=seq.inputs_BTD,
                speech_mask=None if is_read else seq.speech_mask_BT,
                use_cache=False,
            ).last_hidden_state
        return hidden_BTD, of_ctc_layer.get("hidden")

    def _cross_entropy(
        self,
        hidden_BTD: torch.Tensor,
        lengths_B: torch.Tensor,
        text_BN: torch.Tensor,
        text_lengths_B: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Sum the cross-entropy and the correct predictions on transcript and EOS.

        The LM head runs on the positions that predict these and on no others: 49k
        logits on every speech frame would cost more than the whole inserted stack.
        """
        steps_N = torch.arange(text_BN.size(1) + 1, device=text_BN.device)
        wanted_BN = steps_N[None] <= text_lengths_B[:, None]
        # the last position before the transcript predicts its first token
        places_BN = (lengths_B + len(self.prompt_ids) - 1)[:, None] + steps_N[None]
        targets_BN = torch.nn.functional.pad(text_BN, (0, 1)).masked_fill(
            steps_N[None] == text_lengths_B[:, None], self.eos_id
        )
        rows_BN = torch.arange(len(text_BN), device=text_BN.device)[:, None]
        hidden_MD = hidden_BTD[
            rows_BN.expand_as(places_BN)[wanted_BN], places_BN[wanted_BN]
        ]
        logits_MV = self.lm.lm_head(hidden_MD).float()
        targets_M = targets_BN[wanted_BN]
        loss = torch.nn.functional.cross_entropy(
            logits_MV, targets_M, label_smoothing=self.lsm_weight, reduction="sum"
        )
        return loss, (logits_MV.detach().argmax(-1) == targets_M).sum()

    def _ctc_errors(
        self, ctc_BSD, lengths_B, units_BN, unit_lengths_B
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Count the word errors of the CTC head's best paths, times 100, and words."""
        references = [
            self.ctc_units.decode(ids[:length])
            for ids, length in zip(units_BN.tolist(), unit_lengths_B.tolist())
        ]
        hypotheses = map(self.ctc_units.decode, self.ctc.greedy(ctc_BSD, lengths_B))
        errors, words = word_errors(references, list(hypotheses))
        return tuple(ctc_BSD.new_tensor([100.0 * errors, max(words, 1)]).unbind())


def word_errors(references: Several[str], hypotheses: Several[str]) -> Tuple[int, int]:
    """Count word errors and reference words, for the training log."""
    import jiwer

    pairs = [(r, h) for r, h in zip(references, hypotheses) if r.strip()]
    if not pairs:
        return 0, 0
    out = jiwer.process_words([r for r, _ in pairs], [h for _, h in pairs])
    errors = out.substitutions + out.deletions + out.insertions
    return errors, out.hits + out.substitutions + out.deletions
