"""Greedy search, batched over utterances, with or without a draft to verify.

Dimensions: B utterances, N new tokens of a pass, V vocabulary.
"""

import math
from typing import List, Optional

import torch

from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.search.cached_lm import CachedLM
from espnet_dus.search.config import SearchConfig
from espnet_dus.search.draft import (
    CHEAP_TOKENS_CPU,
    CHEAP_TOKENS_GPU,
    Draft,
    ctc_drafts,
)
from espnet_dus.search.encoding import Encoded
from espnet_dus.search.guards import length_limits, loop_length
from espnet_dus.search.result import Hypothesis, hypothesis


@torch.inference_mode()
def greedy_search(
    model: ESPnetDUSModel, encoded: Encoded, search: SearchConfig
) -> List[Hypothesis]:
    """Transcribe a batch, taking the LLM's best token at each step.

    Args:
        model: In eval mode.
        encoded: The batch's speech, with CTC if there is to be a draft.
        search: `draft`, `maxlenratio` and `repetition` are read.

    Returns:
        A hypothesis for each utterance, the same as it would get alone.
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
        on_cpu = encoded.read_BND.device.type == "cpu"
        cheap = CHEAP_TOKENS_CPU if on_cpu else CHEAP_TOKENS_GPU
        # the first pass reads the speech, beside which a draft is short
        room = max(limits, default=0)
        going_on, last = texts, 0  # tokens of a pass that are no proposals
        while going_on:
            proposals = [text.propose(room) for text in going_on]
            new = [text.ids[-last:] * last + p for text, p in zip(going_on, proposals)]
            logits_BNV = lm.feed(new)
            best_BN = logits_BNV.argmax(-1)
            scores_BN = logits_BNV.gather(2, best_BN[..., None]).squeeze(
                2
            ).float() - logits_BNV.float().logsumexp(-1)
            num_kept = [
                last + text.accept(proposal, best, scores)
                for text, proposal, best, scores in zip(
                    going_on, proposals, best_BN.tolist(), scores_BN.tolist()
                )
            ]
            rows = [row for row, text in enumerate(going_on) if not text.ended]
            if rows:
                lm.keep(num_kept, rows)
            going_on, last = [going_on[row] for row in rows], 1
            room = cheap // max(len(rows), 1) - 1
    return [
        hypothesis(model, t.ids, t.scores, math.fsum(t.scores), t.num_passes, t.guards)
        for t in texts
    ]


class _Text:
    """The text of one utterance while it is being written.

    Args:
        eos_id: Ends it.
        limit: At most so many tokens, EOS included.
        repetition: See `SearchConfig`.
        draft: What to propose.
    """

    def __init__(self, eos_id: int, limit: int, repetition: int, draft: Draft):
        self.eos_id = eos_id
        self.limit = limit
        self.repetition = repetition
        self.draft = draft
        self.ids: List[int] = []
        self.scores: List[float] = []  # EOS included
        self.num_passes = 0
        self.guards: List[str] = []
        self.ended = False

    def propose(self, room: int) -> List[int]:
        """Give up to `room` tokens for the LLM to verify, all of which can be used."""
        return self.draft.rest(min(room, self.limit - len(self.ids) - 1))

    def accept(self, proposal: List[int], best: List[int], scores: List[float]) -> int:
        """Write on: the proposed tokens that are the LLM's own, and one of its own.

        Args:
            proposal: N tokens.
            best: The LLM's choice at each of them and behind the last, N + 1.
            scores: Its log-probabilities.

        Returns:
            How many tokens of the proposal stand in the text.
        """
        self.num_passes += 1
        for num_accepted, (token, score) in enumerate(zip(best, scores)):
            proposed: Optional[int] = None
            if num_accepted < len(proposal):
                proposed = proposal[num_accepted]
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
        if loop := loop_length(self.ids, self.repetition):
            keep = len(self.ids) - loop * (self.repetition - 1)
            self.ids, self.scores = self.ids[:keep], self.scores[:keep]
            self.guards.append("repetition")
            self.ended = True
        elif len(self.ids) >= self.limit:
            self.guards.append("length")
            self.ended = True
