"""CTC's part in a joint beam search: ESPnet's prefix scores for HF's beams.

Hugging Face reorders its beams between the steps and tells nobody how; but a beam's
tokens say which beam of the step before it comes from.

Dimensions: B utterances, R rows (beam_size for each utterance), S speech positions, U
CTC units, C candidates, V vocabulary.
"""

from typing import List, Tuple

import torch
from espnet2.legacy.nets.ctc_prefix_score import CTCPrefixScoreTH

from espnet_dus.data.ctc_units import BLANK, UNKNOWN
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.search.encoding import Encoded

# As ESPnet's "pre-beam": so many of the LLM's best candidates get a CTC score.
NUM_CANDIDATES = 64
LOGZERO = -1e10


class CTCPrefixes:
    """log P(CTC) of what may follow each beam, given the beam.

    Args:
        model: With CTC units of type `llm`.
        encoded: The batch's speech, with CTC.
        beam_size: Rows of an utterance.
    """

    def __init__(self, model: ESPnetDUSModel, encoded: Encoded, beam_size: int):
        units, device = model.ctc_units.units, encoded.ctc_BSU.device
        self.eos_id = model.eos_id
        self.beam_size = beam_size
        # EOS is no unit: a column behind theirs stands for it
        self.eos_unit = len(units)
        self.scorable_C = torch.tensor(
            [i for i in range(len(units)) if i not in (BLANK, UNKNOWN)], device=device
        )
        self.unit_of = {
            model.tokenizer.convert_tokens_to_ids(units[i]): i
            for i in self.scorable_C.tolist()
        }
        self.tokens_U = torch.zeros(len(units), dtype=torch.long, device=device)
        self.tokens_U[self.scorable_C] = torch.tensor(list(self.unit_of), device=device)
        ctc_BSU = torch.nn.functional.pad(encoded.ctc_BSU, (0, 1), value=LOGZERO)
        self.scorer = CTCPrefixScoreTH(
            ctc_BSU, encoded.lengths_B.tolist(), BLANK, self.eos_unit
        )
        self.state = None
        self.rows = {}  # (utterance, tokens) -> row, of the step before

    def __call__(
        self, prefixes: List[Tuple[int, ...]], lm_RV: torch.Tensor
    ) -> torch.Tensor:
        """Score a step.

        Args:
            prefixes: The tokens of each row.
            lm_RV: (R, V) the LLM's log-probabilities, which choose the candidates.

        Returns:
            (R, V); -1e10 for what is no candidate.
        """
        lm_RC = lm_RV[:, self.tokens_U[self.scorable_C]]
        num_candidates = min(NUM_CANDIDATES, lm_RC.size(1))
        candidates_RC = self.scorable_C[lm_RC.topk(num_candidates).indices]
        units_RN = torch.tensor(
            [[self.eos_unit, *map(self._unit, p)] for p in prefixes],
            device=lm_RV.device,
        )
        scores_RU, self.state = self.scorer(
            units_RN, self._states(prefixes), candidates_RC
        )
        self.rows = {
            (row // self.beam_size, prefix): row for row, prefix in enumerate(prefixes)
        }
        scores_RV = torch.full_like(lm_RV, LOGZERO)
        scores_RV.scatter_(
            1, self.tokens_U[candidates_RC], scores_RU.gather(1, candidates_RC)
        )
        scores_RV[:, self.eos_id] = scores_RU[:, self.eos_unit]
        return scores_RV

    def _unit(self, token: int) -> int:
        return self.unit_of.get(token, self.eos_unit)

    def _states(self, prefixes: List[Tuple[int, ...]]):
        """Give each row the CTC state of the beam it continues."""
        if self.state is None:
            return None
        forward_S2RC, prefix_scores_RU, f_min, f_max, places_RU = self.state
        device = prefix_scores_RU.device
        rows_R = torch.tensor(
            [
                self.rows[row // self.beam_size, prefix[:-1]]
                for row, prefix in enumerate(prefixes)
            ],
            device=device,
        )
        units_R = torch.tensor([self._unit(p[-1]) for p in prefixes], device=device)
        places_R = places_RU[rows_R, units_R]
        forward_S2R = forward_S2RC[:, :, rows_R, places_R.clamp(min=0)]
        # a beam that CTC has not scored (HF fills up with such) stays impossible
        forward_S2R = forward_S2R.masked_fill(places_R < 0, LOGZERO)
        scores_R1 = prefix_scores_RU[rows_R, units_R][:, None]
        return forward_S2R, scores_R1, f_min, f_max
