"""Greedy search, batched over utterances, with or without a draft to verify.

Dimensions: B utterances, N new tokens of a pass, V vocabulary.
"""

import math
from dataclasses import dataclass, field
from typing import List

import torch

from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.speech_lm import Encoded
from espnet_dus.search.cached_lm import CachedLM
from espnet_dus.search.config import SearchConfig
from espnet_dus.search.draft import (
    CHEAP_TOKENS_CPU,
    CHEAP_TOKENS_GPU,
    Draft,
    ctc_drafts,
)
from espnet_dus.search.guards import length_limits, loop_continuations
from espnet_dus.search.result import Hypothesis, hypothesis


@torch.inference_mode()
def greedy_search(
    model: ESPnetDUSModel, encoded: Encoded, search: SearchConfig
) -> List[Hypothesis]:
    """Transcribe a batch, taking the LLM's best token at each step.

    Args:
        model: In eval mode.
        encoded: The batch's speech, with CTC log-probabilities for a draft.
        search: `draft`, `maxlenratio` and `repetition` are used.

    Returns:
        A hypothesis for each utterance, independent of the rest of the batch.
    """
    drafts = [Draft() for _ in encoded.lengths_B]
    if search.draft:
        drafts = ctc_drafts(model, encoded.ctc_BSU, encoded.lengths_B)
    limits = length_limits(encoded.lengths_B, search.maxlenratio).tolist()
    texts = [
        _Text(model.eos_id, limit, search.repetition, draft)
        for limit, draft in zip(limits, drafts)
    ]
    with model.autocast():
        lm = CachedLM(model, encoded)
        on_cpu = encoded.read_BRD.device.type == "cpu"
        cheap = CHEAP_TOKENS_CPU if on_cpu else CHEAP_TOKENS_GPU
        # the first pass reads the speech, beside which a draft is short
        room = max(limits, default=0)
        open_texts, last = texts, 0  # tokens of a pass that are not proposals
        while open_texts:
            proposals = [text.propose(room) for text in open_texts]
            new = [
                text.ids[-last:] * last + p for text, p in zip(open_texts, proposals)
            ]
            logits_BNV = lm.feed(new)
            log_sum_BN = logits_BNV.float().logsumexp(-1)
            for text, proposal, logits_NV in zip(open_texts, proposals, logits_BNV):
                text.forbid_loops(proposal, logits_NV)
            best_BN = logits_BNV.argmax(-1)
            best_logits_BN = logits_BNV.gather(2, best_BN[..., None]).squeeze(2)
            scores_BN = best_logits_BN.float() - log_sum_BN
            num_kept = [
                last + text.accept(proposal, best, scores)
                for text, proposal, best, scores in zip(
                    open_texts, proposals, best_BN.tolist(), scores_BN.tolist()
                )
            ]
            rows = [row for row, text in enumerate(open_texts) if not text.ended]
            if rows:
                lm.keep(num_kept, rows)
            open_texts, last = [open_texts[row] for row in rows], 1
            room = cheap // max(len(rows), 1) - 1
    return [
        hypothesis(model, t.ids, t.scores, math.fsum(t.scores), t.num_passes, t.guards)
        for t in texts
    ]


@dataclass
class _Text:
    """The text of one utterance while it is being written."""

    eos_id: int
    limit: int  # maximum number of tokens, EOS included
    repetition: int  # see `SearchConfig`
    draft: Draft  # where proposals come from
    ids: List[int] = field(default_factory=list)
    scores: List[float] = field(default_factory=list)  # EOS included
    num_passes: int = 0
    guards: List[str] = field(default_factory=list)
    ended: bool = False
    # steps of this pass at which the LLM was in a loop
    loops: List[int] = field(default_factory=list)

    def propose(self, room: int) -> List[int]:
        """Return up to `room` tokens for the LLM to verify, all within the limit."""
        return self.draft.rest(min(room, self.limit - len(self.ids) - 1))

    def forbid_loops(self, proposal: List[int], logits_NV: torch.Tensor) -> None:
        """Set the logits of tokens that would continue a loop to -inf, in place.

        Args:
            proposal: The proposed tokens.
            logits_NV: The LLM's logits before the first of them, and after each.
        """
        self.loops = []
        for n in range(len(proposal) + 1):
            tokens = loop_continuations(self.ids + proposal[:n], self.repetition)
            if tokens:
                if int(logits_NV[n].argmax()) in tokens:
                    self.loops.append(n)
                logits_NV[n, tokens] = -torch.inf

    def accept(self, proposal: List[int], best: List[int], scores: List[float]) -> int:
        """Append the proposed tokens that are the LLM's own, and one token of its own.

        Args:
            proposal: N tokens.
            best: The LLM's choice before the first of them and after each, N + 1.
            scores: Its log-probabilities.

        Returns:
            The number of proposed tokens in the text.
        """
        self.num_passes += 1
        steps = zip(best, scores, [*proposal, None])
        for num_accepted, (token, score, proposed) in enumerate(steps):
            if num_accepted in self.loops and "repetition" not in self.guards:
                self.guards.append("repetition")
            self._write(token, score)
            if self.ended or token != proposed:
                return num_accepted
        raise ValueError("more tokens were proposed than the LLM has answered")

    def _write(self, token: int, score: float) -> None:
        self.scores.append(score)
        if token == self.eos_id:
            self.ended = True
            return
        self.ids.append(token)
        self.draft.advance(token)
        if len(self.ids) >= self.limit:
            self.guards.append("length")
            self.ended = True
