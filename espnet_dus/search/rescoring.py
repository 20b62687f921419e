"""N-best rescoring: the complete hypotheses of a beam search, scored by CTC.

Dimensions: S speech positions, U CTC units.
"""

from typing import List

import torch

from espnet_dus.data.ctc_units import BLANK, CTCUnits
from espnet_dus.search.result import Hypothesis


def rescore(
    hypotheses: List[Hypothesis],
    ctc_SU: torch.Tensor,
    units: CTCUnits,
    ctc_weight: float,
) -> List[Hypothesis]:
    """Set hypotheses' scores to `(1 - ctc_weight) * score + ctc_weight * log P(CTC)`.

    Args:
        hypotheses: Of one utterance.
        ctc_SU: The CTC head's log-probabilities.
        units: Its units, of any type.
        ctc_weight: From 0 to 1.
    """
    return [
        h._replace(
            score=(1 - ctc_weight) * h.score
            + ctc_weight * ctc_log_probability(ctc_SU, units.encode(h.text))
        )
        for h in hypotheses
    ]


def ctc_log_probability(ctc_SU: torch.Tensor, unit_ids: List[int]) -> float:
    """Return the log-probability of a transcript under CTC.

    If there are more units than speech positions, it is -1e10, as in ESPnet.
    """
    loss = torch.nn.functional.ctc_loss(
        ctc_SU[:, None],
        torch.tensor([unit_ids], dtype=torch.long, device=ctc_SU.device),
        torch.tensor([len(ctc_SU)]),
        torch.tensor([len(unit_ids)]),
        blank=BLANK,
        reduction="sum",
    )
    return max(-loss.item(), -1e10)
