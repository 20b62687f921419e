"""Hugging Face's beam search, alone or joint with CTC; n-best hypotheses.

Dimensions: B utterances, R rows of the search (beam_size for each utterance), N tokens
so far, T positions of the prefill, V vocabulary.
"""

import math
from typing import Dict, List, Optional, Set

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    StoppingCriteria,
)

from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.sequence import Joined
from espnet_dus.model.speech_lm import Encoded
from espnet_dus.search.config import SearchConfig
from espnet_dus.search.guards import length_limits, loop_continuations
from espnet_dus.search.joint import LOGZERO, CTCPrefixes, Prefix
from espnet_dus.search.rescoring import rescore
from espnet_dus.search.result import Hypothesis, hypothesis

# Up to this score a row is empty: HF has not filled it, or CTC finds it impossible.
IMPOSSIBLE = -1e8


@torch.inference_mode()
def beam_search(
    model: ESPnetDUSModel, encoded: Encoded, search: SearchConfig
) -> List[List[Hypothesis]]:
    """Transcribe a batch with `beam_size` hypotheses at each step.

    With a `ctc_weight` w, each token adds `(1 - w) * log P(LLM) + w * log P(CTC)`,
    where CTC's is the probability of all transcripts with that prefix (Watanabe et al.,
    "Hybrid CTC/attention architecture for end-to-end speech recognition"). This needs
    CTC units that are the LLM's tokens; units of another type score the complete
    hypotheses.

    Args:
        model: In eval mode.
        encoded: The batch's speech, with CTC log-probabilities if CTC has a weight.
        search: All options but `draft` are used.

    Returns:
        The n-best hypotheses of each utterance, independent of the rest of the batch.
    """
    limits_B = length_limits(encoded.lengths_B, search.maxlenratio)
    joint = search.ctc_weight > 0 and model.ctc_units.type == "llm"
    ctc = CTCPrefixes(model, encoded) if joint else None
    scores = BeamScores(search, ctc)
    with model.autocast():
        seq, masks = model.prefix(encoded)
        generated = model.lm.generate(
            inputs_embeds=seq.inputs_BTD,
            past_key_values=_prefill(model, seq, masks, search.beam_size),
            **masks,
            generation_config=GenerationConfig(
                max_new_tokens=int(limits_B.max()),
                num_beams=search.beam_size,
                num_return_sequences=search.beam_size,
                length_penalty=0.0,  # the score is a sum, as ESPnet's
                do_sample=False,
                eos_token_id=model.eos_id,
                pad_token_id=model.eos_id,
            ),
            logits_processor=[scores],
            stopping_criteria=[Limits(limits_B, scores)],
        )
    rows = generated.view(len(limits_B), search.beam_size, -1).tolist()
    results = []
    for utterance, (texts, limit) in enumerate(zip(rows, limits_B.tolist())):
        made = [_result(model, search, scores, utterance, t, limit) for t in texts]
        found = [hypothesis for hypothesis in made if hypothesis is not None]
        if search.ctc_weight and not joint:
            length = int(encoded.lengths_B[utterance])
            ctc_SU = encoded.ctc_BSU[utterance, :length]
            found = rescore(found, ctc_SU, model.ctc_units, search.ctc_weight)
        found = [
            h._replace(score=h.score + search.word_reward * len(h.text.split()))
            for h in found
        ]
        found.sort(key=lambda h: -h.score)
        results.append(found[: search.nbest])
    return results


def _prefill(
    model: ESPnetDUSModel,
    seq: Joined,
    masks: Dict[str, torch.Tensor],
    beam_size: int,
) -> DynamicCache:
    """Run the LLM up to the last position, once for all beams of an utterance.

    HF would run it for each beam; it continues from a cache.

    Returns:
        The cache, with a row for each beam. It is empty where the last position is
        speech, which bidirectional layers have to see together with the rest.
    """
    cache = DynamicCache()
    num_cached = seq.inputs_BTD.size(1) - 1
    if num_cached and (model.prompt_ids or "speech_mask" not in masks):
        positions_BT = (seq.attention_mask_BT.cumsum(1) - 1).clamp(min=0)
        model.lm.model(
            inputs_embeds=seq.inputs_BTD[:, :-1],
            position_ids=positions_BT[:, :-1],
            past_key_values=cache,
            use_cache=True,
            **{name: mask_BT[:, :-1] for name, mask_BT in masks.items()},
        )
        rows_B = torch.arange(len(positions_BT), device=positions_BT.device)
        cache.reorder_cache(rows_B.repeat_interleave(beam_size))
    return cache


def _result(
    model: ESPnetDUSModel,
    search: SearchConfig,
    scores: "BeamScores",
    utterance: int,
    ids: List[int],
    limit: int,
) -> Optional[Hypothesis]:
    """Make a hypothesis of a row; None where HF has left the row unfilled."""
    end = ids.index(model.eos_id) if model.eos_id in ids else len(ids)
    scored = ids[:end] if end == limit else [*ids[:end], model.eos_id]
    token_scores = scores.of(utterance, scored)
    if token_scores is None:
        return None
    guards = ["repetition"] if scores.was_in_loop(utterance, ids[:end]) else []
    guards += ["length"] if end == limit else []
    score = math.fsum(token_scores) + search.penalty * len(token_scores)
    return hypothesis(model, ids[:end], token_scores, score, scores.num_passes, guards)


class BeamScores(LogitsProcessor):
    """Scores the tokens that may follow each beam, and remembers what HF considered.

    Args:
        search: `beam_size`, `ctc_weight`, `penalty` and `repetition` are used.
        ctc: The CTC head's scores, or None for the LLM's alone.
    """

    def __init__(self, search: SearchConfig, ctc: Optional[CTCPrefixes]):
        self.search = search
        self.ctc = ctc
        self.num_passes = 0
        self.rows: Dict[Prefix, int] = {}
        self.scores_RV: Optional[torch.Tensor] = None
        self.remembered: Dict[Prefix, float] = {}  # the score of the last token
        # texts whose best continuation would have continued a loop
        self.loops: Set[Prefix] = set()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores (R, V) of what may follow the tokens (R, N) so far."""
        self.num_passes += 1
        size = self.search.beam_size
        keys = [(n // size, tuple(ids)) for n, ids in enumerate(input_ids.tolist())]
        if self.ctc is not None:
            weight = self.search.ctc_weight
            ctc_RV = self.ctc(keys, scores)
            scores = (1 - weight) * scores + weight * ctc_RV
            # impossible with any weight
            scores = scores.masked_fill(ctc_RV <= IMPOSSIBLE, LOGZERO)
        self.rows = {key: row for row, key in enumerate(keys)}
        for key, row in self.rows.items():
            tokens = loop_continuations(key[1], self.search.repetition)
            if tokens:
                if int(scores[row].argmax()) in tokens:
                    self.loops.add(key)
                scores[row, tokens] = LOGZERO
        self.scores_RV = scores
        return scores + self.search.penalty

    def remember(self, candidates: List[List[int]], num_utterances: int) -> None:
        """Keep the scores of the candidates, the same number for each utterance."""
        share = len(candidates) // num_utterances
        keys = [(k // share, tuple(ids)) for k, ids in enumerate(candidates)]
        rows = [self.rows[utterance, ids[:-1]] for utterance, ids in keys]
        tokens = [ids[-1] for _, ids in keys]
        self.remembered.update(zip(keys, self.scores_RV[rows, tokens].tolist()))

    def of(self, utterance: int, ids: List[int]) -> Optional[List[float]]:
        """Return the scores of a hypothesis' tokens, without penalty.

        Returns:
            None where HF never considered it, or CTC finds it impossible.
        """
        scores = [
            self.remembered.get((utterance, tuple(ids[: n + 1])), IMPOSSIBLE)
            for n in range(len(ids))
        ]
        return None if min(scores) <= IMPOSSIBLE else scores

    def was_in_loop(self, utterance: int, ids: List[int]) -> bool:
        """Return whether a loop was broken on the way to a hypothesis."""
        return any(
            (utterance, tuple(ids[:n])) in self.loops for n in range(len(ids) + 1)
        )


class Limits(StoppingCriteria):
    """Ends each hypothesis at its utterance's limit.

    Args:
        limits_B: (B,) maximum number of tokens.
        scores: Records which candidates HF considers.
    """

    def __init__(self, limits_B: torch.Tensor, scores: BeamScores):
        self.limits_B = limits_B
        self.scores = scores

    def __call__(self, input_ids: torch.Tensor, scores, **_) -> torch.Tensor:
        """Return which rows are done; the prompt is embeddings, so all ids are new."""
        candidates = input_ids.tolist()
        self.scores.remember(candidates, len(self.limits_B))
        share = len(candidates) // len(self.limits_B)
        return self.limits_B.repeat_interleave(share) <= input_ids.size(1)
