"""CTC's part in a joint beam search: ESPnet's prefix scores for Hugging Face's beams.

Hugging Face reorders beams between steps without exposing the permutation, so each
beam's parent is recovered from its token prefix.

Dimensions: B utterances, R rows (beam_size for each utterance), S speech positions, U
CTC units, C candidate units, V vocabulary.
"""

from typing import Dict, List, Tuple

import torch
from espnet2.legacy.nets.ctc_prefix_score import CTCPrefixScoreTH

from espnet_dus.data.ctc_units import BLANK, UNKNOWN
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.speech_lm import Encoded

# ESPnet's "pre-beam": the number of units, the LLM's best ones, that get a CTC score.
NUM_CANDIDATES = 64
LOGZERO = -1e10
Prefix = Tuple[int, Tuple[int, ...]]  # of a row: its utterance and its tokens


class CTCPrefixes:
    """log P(CTC) of each token that may follow a beam, given the beam.

    A token that is not a CTC unit is scored as `<unk>`, the unit that replaced it in
    training. All such tokens share that score, and the LLM chooses among them.

    Args:
        model: With CTC units of type `llm`.
        encoded: The batch's speech, with CTC.
    """

    def __init__(self, model: ESPnetDUSModel, encoded: Encoded):
        units, device = model.ctc_units.units, encoded.ctc_BSU.device
        # EOS is not a unit: a column after the units represents it
        self.eos_unit = eos_unit = len(units)
        self.known_C = torch.arange(UNKNOWN + 1, eos_unit, device=device)
        self.tokens_C = torch.tensor(
            model.tokenizer.convert_tokens_to_ids(units[UNKNOWN + 1 :]),
            dtype=torch.long,
            device=device,
        )
        self.unit_of_V = torch.full(
            (model.lm.config.vocab_size,), UNKNOWN, device=device
        )
        self.unit_of_V[self.tokens_C] = self.known_C
        self.unit_of_V[model.eos_id] = eos_unit
        ctc_BSU = torch.nn.functional.pad(encoded.ctc_BSU, (0, 1), value=LOGZERO)
        self.scorer = CTCPrefixScoreTH(
            ctc_BSU, encoded.lengths_B.tolist(), BLANK, eos_unit
        )
        self.state = None
        self.rows: Dict[Prefix, int] = {}  # of the previous step

    def __call__(self, prefixes: List[Prefix], lm_RV: torch.Tensor) -> torch.Tensor:
        """Score a step.

        Args:
            prefixes: The utterance and the tokens of each row.
            lm_RV: (R, V) the LLM's log-probabilities, which choose the candidates.

        Returns:
            (R, V); `LOGZERO` for a token that CTC finds impossible, or whose unit is
            not a candidate.
        """
        lm_RC = lm_RV[:, self.tokens_C]
        num_candidates = min(NUM_CANDIDATES, lm_RC.size(1))
        candidates_RC = torch.nn.functional.pad(
            self.known_C[lm_RC.topk(num_candidates).indices], (0, 1), value=UNKNOWN
        )
        tokens_RN = torch.tensor(
            [tokens for _, tokens in prefixes], dtype=torch.long, device=lm_RV.device
        )
        units_RN = torch.nn.functional.pad(
            self.unit_of_V[tokens_RN], (1, 0), value=self.eos_unit
        )
        scores_RU, self.state = self.scorer(
            units_RN, self._states(prefixes), candidates_RC
        )
        self.rows = {prefix: row for row, prefix in enumerate(prefixes)}
        log_prefix_RU = self.state[1]
        scores_RU = scores_RU.masked_fill(log_prefix_RU <= LOGZERO / 2, LOGZERO)
        return scores_RU[:, self.unit_of_V]

    def _states(self, prefixes: List[Prefix]):
        """Return the CTC state of the beam that each row continues."""
        if self.state is None:
            return None
        forward_S2RC, prefix_scores_RU, f_min, f_max, index_RU = self.state
        device = prefix_scores_RU.device
        parents = [self.rows[utterance, tokens[:-1]] for utterance, tokens in prefixes]
        rows_R = torch.tensor(parents, device=device)
        last_R = torch.tensor([tokens[-1] for _, tokens in prefixes], device=device)
        units_R = self.unit_of_V[last_R]
        index_R = index_RU[rows_R, units_R]
        forward_S2R = forward_S2RC[:, :, rows_R, index_R.clamp(min=0)]
        # a beam that CTC has not scored (HF fills up with such) stays impossible
        forward_S2R = forward_S2R.masked_fill(index_R < 0, LOGZERO)
        scores_R1 = prefix_scores_RU[rows_R, units_R][:, None]
        return forward_S2R, scores_R1, f_min, f_max
