"""Text degradation: what adapting a base LM to speech costs on text."""

from typing import Dict, NamedTuple, Optional, Sequence

from espnet_dus.evaluation.results import ArmResults
from espnet_dus.evaluation.text.metric import mean_of_independent


class Degradation(NamedTuple):
    """What an arm does to text, in one number and its unit: adapted minus base LM."""

    unit: str  # `points` of accuracy (< 0: a loss) or `% perplexity` (> 0: a loss)
    delta: float
    standard_error: Optional[float]  # where it is known

    @property
    def lost(self) -> float:
        """How much is lost, in `unit`; below 0: gained."""
        return -self.delta if self.unit == "points" else self.delta


def degradations(arms: Sequence[ArmResults]) -> Dict[str, Optional[Degradation]]:
    """Return the text degradation of each arm by name; None where it was not run.

    It is the mean delta of the tasks' accuracies with the added layers kept or, without
    such tasks, the mean change of the texts' perplexities.
    """
    evaluated = [arm for arm in arms if arm.text_setting]
    result: Dict[str, Optional[Degradation]] = {arm.name: None for arm in arms}
    in_points = all(arm.mean_delta for arm in evaluated)
    for arm in evaluated:
        if in_points:
            unit = "points"
            delta, error = arm.mean_delta.delta, arm.mean_delta.standard_error
        elif arm.perplexity:
            unit = "% perplexity"
            changes = [delta.relative() for delta in arm.perplexity.values()]
            delta, error = mean_of_independent(*zip(*changes))
        else:
            continue
        error = None if error is None else 100 * error
        result[arm.name] = Degradation(unit, 100 * delta, error)
    return result


def degradation_avoided(
    arms: Sequence[ArmResults], losses: Dict[str, Optional[Degradation]]
) -> Dict[str, float]:
    """Return 1 - (degradation of an arm) / (degradation of arm `full`), by name.

    It is empty if no arm is `full`, or if `full` lost nothing.
    """
    full = next((losses[arm.name] for arm in arms if arm.adaptation == "full"), None)
    if full is None or not full.lost > 0:
        return {}
    return {
        name: 1 - loss.lost / full.lost
        for name, loss in losses.items()
        if loss is not None
    }
