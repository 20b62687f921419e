"""The model as ESPnet trains it: the core, features in front of it, losses on it.

    speech -> frontend -> SpecAug, normalization -> speech embedder -+
                                                                     v
    [text before][speech][prompt][transcript] -> lower -> upper -> LM head -> CE loss
                                                   |
                                                   +-> CTC head -> CTC loss

Speech tokens need no frontend: their embedder is first. See `speech_lm` for the parts.

Dimensions: B utterances, S speech positions, R positions that the LM reads of the
speech, N transcript tokens, T positions of the joined sequence, D hidden, V vocabulary,
M target positions of the batch.
"""

import functools
import logging
from typing import Callable, Dict, Optional, Sequence, Tuple

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel

from espnet_dus.data.ctc_units import CTCUnits
from espnet_dus.model.base_lm import Identity, embedding_rms
from espnet_dus.model.checkpoint import keep_only_trained, parameter_counts
from espnet_dus.model.ctc_compression import CTCCompression
from espnet_dus.model.ctc_head import CTCHead
from espnet_dus.model.features import FeatureModel, extract_features
from espnet_dus.model.packing import pack, use_packed_attention
from espnet_dus.model.sequence import Joined
from espnet_dus.model.speech_lm import SpeechLM
from espnet_dus.model.text_retention import TextRetention


class ESPnetDUSModel(SpeechLM, AbsESPnetModel):
    """Speech recognition by an adapted text LLM.

    Args:
        lm: The adapted LM (see `adaptation.adapt`).
        tokenizer: The base LM's tokenizer.
        identity: The base LM's identity.
        frontend: Raw speech to features, or None where the input is features or tokens.
        specaug: SpecAugment or None.
        normalize: Normalization of features or None.
        speech_embedder: Features or tokens to the LM's embedding space.
        ctc: The CTC head, or None.
        ctc_units: The CTC head's units.
        compute_dtype: Precision that the base LM was loaded in; see `autocast`.
        prompt: Text between speech and transcript.
        prompt_tuning: Train the embeddings of the prompt, see `SpeechLM`.
        ctc_layer: The layer that the CTC head reads, see `upscaling.ctc_layer_index`.
        ctc_weight: Share of the CTC loss; the cross-entropy has the rest.
        ctc_warmup_epochs: Number of initial epochs that train CTC only. The forward
            pass then stops at `ctc_layer`, so that the layers above cost nothing.
        ctc_compression: The LM reads one vector for each unit that CTC recognizes (see
            `ctc_compression`), not one for each speech position. For added layers
            of scope `speech` that all precede the first base layer, with the CTC head
            on the last of them.
        lsm_weight: Label smoothing of the cross-entropy.
        text_retention_weight: Weight of the loss that limits how far the added layers
            move text (see `text_retention`). For scope `all`; in scope `speech` text
            does not change.
        packing: The utterances of a batch share one row, without padding (see
            `packing`). Losses are the same; only training and validation pack.

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
        speech_embedder: torch.nn.Module,
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
        packing: bool = False,
        extract_feats_in_collect_stats: bool = True,
    ):
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
        scope = getattr(lm.config, "depth_up_scaling", {}).get("scope")
        if text_retention_weight < 0 or (text_retention_weight and scope != "all"):
            raise ValueError(
                f"text_retention_weight: {text_retention_weight}; it is 0 or more, and "
                "0 where no inserted layer of scope all can change text"
            )
        if ctc_compression and ctc is None:
            raise ValueError("ctc_compression needs a CTC head: give --ctc_units")
        compression = None
        if ctc_compression:
            compression = CTCCompression(ctc_units.token_ids(), embedding_rms(lm))
        super().__init__(
            lm,
            speech_embedder,
            tokenizer(prompt, add_special_tokens=False).input_ids,
            tokenizer.eos_token_id,
            compute_dtype,
            prompt_tuning,
            ctc,
            ctc_layer,
            compression,
        )
        if ctc_compression and not self.prompt_ids:
            raise ValueError(
                "ctc_compression needs a prompt: where the CTC head hears nothing, the "
                "LLM would have no input to continue"
            )
        self.tokenizer = tokenizer
        self.identity = identity
        self.frontend = frontend
        self.specaug = specaug
        self.normalize = normalize
        self.ctc_units = ctc_units
        self.ctc_weight = ctc_weight
        self.ctc_warmup_epochs = ctc_warmup_epochs
        self.epoch: Optional[int] = None
        self.count_work: Optional[Callable] = None  # see training.throughput
        self.lsm_weight = lsm_weight
        self.text_retention_weight = text_retention_weight
        self.text_retention = TextRetention()
        self.packing = packing
        if packing:
            use_packed_attention(lm)
        self.extract_feats_in_collect_stats = extract_feats_in_collect_stats
        counts = parameter_counts(self)
        share = counts["trained"] / max(counts["total"], 1)
        logging.info(
            f"trained parameters: {counts['trained']:,} of {counts['total']:,} "
            f"({share:.1%}), frozen: {counts['frozen']:,}"
        )
        keep_only_trained(self, identity)

    # -- modes and precision -----------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 1), on which the CTC warm-up depends."""
        self.epoch = epoch

    @property
    def ctc_only(self) -> bool:
        """Whether CTC alone is trained, as in the CTC warm-up."""
        in_warmup = self.epoch is not None and self.epoch <= self.ctc_warmup_epochs
        return self.ctc_weight == 1 or in_warmup

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
        # frozen base LM must keep the precision it was loaded in.
        def keep_frozen_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            frozen = isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad
            return moved.to(tensor.dtype) if frozen else moved

        return super()._apply(keep_frozen_dtype, recurse)

    # -- training ----------------------------------------------------------------------

    def forward(
        self, loss_denominators: Optional[torch.Tensor] = None, **batch
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor], torch.Tensor]:
        """Compute the loss of a batch.

        The losses are sums over tokens, divided by the number of tokens: those of this
        batch, or `loss_denominators` where several batches make an update. The mean of
        the batches' losses and gradients is then that of one big batch.

        Args:
            loss_denominators: (2,) mean numbers of target tokens and of CTC units in a
                batch of the update (see `training.accumulation`).
            batch: Arguments of `loss_sums`.

        Returns:
            The loss, statistics for the log, and 1 as the batch's weight.
        """
        sums = self.loss_sums(**batch)
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
        text_before: Optional[torch.Tensor] = None,
        text_before_lengths: Optional[torch.Tensor] = None,
        **_,
    ) -> Dict[str, Tuple[torch.Tensor, torch.Tensor]]:
        """Sum the losses and statistics of a batch.

        Args:
            speech: (B, samples); as features (B, F, M); as tokens (B, S, K).
            speech_lengths: (B,).
            text: (B, N) token ids of the base LM, padded on the right.
            text_lengths: (B,).
            text_ctc: (B, N') CTC unit ids.
            text_ctc_lengths: (B,).
            text_before: (B, N'') token ids of the text before the speech.
            text_before_lengths: (B,).

        Returns:
            Sum and number of its terms, by name: `loss_ce` and `acc` over transcript
            tokens and EOS, `loss_ctc` over CTC units, `ctc_skipped` (units of
            transcripts that are too long for CTC) too, `wer_ctc` (in evaluation)
            over words, `text_drift` as it is. With CTC alone there is no `loss_ce`.
        """
        sums: Dict[str, Tuple[torch.Tensor, torch.Tensor]] = {}
        with self.autocast():
            speech_BSD, lengths_B = self.embed_speech(speech, speech_lengths)
            before = None
            if text_before is not None:
                before = text_before, text_before_lengths
            texts = text, text_lengths, "right", before
            if self.ctc_only or self.compression is not None:
                seq = self._lay_out(self.up_to_speech(speech_BSD, lengths_B, before))
            else:
                seq = self.join_text(speech_BSD, lengths_B, *texts)
                context = self.lm.config.max_position_embeddings
                _warn_beyond_context(context, seq.inputs_BTD.size(1))
                seq = self._lay_out(seq)
            lower_BTD = self.lower(seq)
            ctc_seq, hidden_BTD = seq, lower_BTD
            if self.compression is not None and not self.ctc_only:
                heard_BSD = seq.of_speech(lower_BTD, speech_BSD.size(1))
                read_BRD, read_B = self.compress(heard_BSD, lengths_B)
                seq = self._lay_out(self.join_text(read_BRD, read_B, *texts))
                hidden_BTD = seq.inputs_BTD
            if not self.ctc_only:
                predicted = self._predicted(seq, text, text_lengths)
                hidden_BTD = self.upper(hidden_BTD, seq)
        if self.training and self.count_work is not None:
            self.count_work(speech_lengths, lengths_B, text_lengths, seq)
        targets = text_lengths.sum() + len(text_lengths)
        if not self.ctc_only:
            ce, hits = self._cross_entropy(hidden_BTD, *predicted)
            sums.update(loss_ce=(ce, targets), acc=(hits, targets))
        else:
            # no token was predicted: such an epoch is never the best by accuracy
            sums.update(acc=(torch.zeros((), device=targets.device), targets))
        if self.ctc is not None and (self.ctc_weight > 0 or self.ctc_only):
            ctc_BSD = ctc_seq.of_speech(lower_BTD, speech_BSD.size(1))
            units = text_ctc, text_ctc_lengths
            ctc, placed = self.ctc(ctc_BSD, lengths_B, *units)
            given = text_ctc_lengths.sum()
            skipped = (given - placed).clamp(min=0), given.clamp(min=1)
            sums.update(loss_ctc=(ctc, placed), ctc_skipped=skipped)
            if not self.training:
                sums.update(wer_ctc=self._ctc_errors(ctc_BSD, lengths_B, *units))
        if self.training and self.text_retention_weight:
            with self.autocast():
                drift = self.text_retention(self.lm)
            sums.update(text_drift=(drift, torch.ones_like(drift)))
        return sums

    def statistics(self, training: bool) -> Sequence[str]:
        """Return the names of what every epoch reports, in training or validation."""
        names = ["loss"]
        if self.ctc_weight < 1:  # else no token is predicted
            names.append("acc")
            if self.ctc_warmup_epochs == 0:
                names.append("loss_ce")
        if self.ctc_weight > 0:
            names += ["loss_ctc", "ctc_skipped"] + ([] if training else ["wer_ctc"])
        if training and self.text_retention_weight:
            names.append("text_drift")
        return names

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

    collect_feats = FeatureModel.collect_feats

    def embed_speech(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return speech embeddings (B, S, D) and their lengths (B,)."""
        with torch.autocast(self.lm.device.type, enabled=False):
            feats, lengths = extract_features(self.frontend, speech, speech_lengths)
            if self.specaug is not None and self.training:
                feats, lengths = self.specaug(feats, lengths)
            if self.normalize is not None:
                feats, lengths = self.normalize(feats, lengths)
        return self.speech_embedder(feats, lengths)

    def _lay_out(self, seq: Joined) -> Joined:
        return pack(seq) if self.packing else seq

    def _predicted(
        self, seq: Joined, text_BN: torch.Tensor, text_lengths_B: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return what is predicted, transcript and EOS: positions (B T) and tokens.

        Reads a number from the GPU, so it precedes the layers.
        """
        steps_N = torch.arange(text_BN.size(1) + 1, device=text_BN.device)
        wanted_X = (steps_N[None] <= text_lengths_B[:, None]).flatten()
        wanted_M = wanted_X.nonzero().squeeze(1)
        # the last position before the transcript predicts its first token
        first_B = seq.starts_B + seq.lengths_B - text_lengths_B - 1
        index_BN = first_B[:, None] + steps_N[None]
        targets_BN = torch.nn.functional.pad(text_BN, (0, 1)).masked_fill(
            steps_N[None] == text_lengths_B[:, None], self.eos_id
        )
        return index_BN.flatten()[wanted_M], targets_BN.flatten()[wanted_M]

    def _cross_entropy(
        self, hidden_BTD: torch.Tensor, index_M: torch.Tensor, targets_M: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Sum the cross-entropy and the correct predictions on transcript and EOS.

        The LM head runs only on the positions that predict these: 49k logits on every
        speech position would cost more than all added layers.
        """
        hidden_MD = hidden_BTD.flatten(0, 1).index_select(0, index_M)
        logits_MV = self.lm.lm_head(hidden_MD).float()
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


def word_errors(
    references: Sequence[str], hypotheses: Sequence[str]
) -> Tuple[int, int]:
    """Count word errors and reference words, for the training log."""
    import jiwer

    pairs = [(r, h) for r, h in zip(references, hypotheses) if r.strip()]
    if not pairs:
        return 0, 0
    out = jiwer.process_words([r for r, _ in pairs], [h for _, h in pairs])
    errors = out.substitutions + out.deletions + out.insertions
    return errors, out.hits + out.substitutions + out.deletions


@functools.lru_cache(maxsize=None)  # once for each length
def _warn_beyond_context(context: int, num_positions: int) -> None:
    if num_positions > context:
        logging.warning(
            f"a sequence of speech and text has {num_positions} positions, but the "
            f"base LM's context is {context}: lower --max_wav_duration (stage 4)"
        )
