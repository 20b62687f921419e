"""The comparison of arms as pictures: WER against text, and training curves."""

from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Union

from espnet_dus.evaluation.degradation import Degradation
from espnet_dus.evaluation.results import ArmResults
from espnet_dus.io import drawing

MARKERS = "osD^v"  # matplotlib has ten colours; the next ten arms have another marker


def _look(arm: int) -> Dict[str, Any]:
    """Return colour and marker of an arm (from 0), the same in both pictures."""
    return dict(color=f"C{arm % 10}", marker=MARKERS[arm // 10 % len(MARKERS)])


def draw_trade_off(
    arms: Sequence[ArmResults],
    losses: Dict[str, Optional[Degradation]],
    test_set: str,
    path: Union[str, Path],
) -> None:
    """Draw a point for each arm that was evaluated on text; upper left is best.

    Bars are 95 % intervals, where these are known.
    """
    with drawing(path, 7, 5) as axes:
        axes.axhline(0, color="#9aa5b1", linewidth=1, linestyle="--", zorder=0)
        for i, arm in enumerate(arms):
            wer, loss = arm.sets[test_set].wer, losses[arm.name]
            if loss is None:
                continue
            x_bar = None
            if wer.low is not None and wer.high is not None:
                # the interval of a skewed bootstrap may exclude the rate itself
                x_bar = [[max(0.0, wer.err - wer.low)], [max(0.0, wer.high - wer.err)]]
            error = loss.standard_error
            axes.errorbar(
                wer.err,
                loss.delta,
                xerr=x_bar,
                yerr=None if error is None else 1.96 * error,
                linestyle="",
                capsize=3,
                elinewidth=1,
                label=arm.name,
                **_look(i),
            )
        axes.margins(0.1)
        axes.set_xlabel(f"WER on {test_set} (%)")
        if next(filter(None, losses.values())).unit == "points":
            axes.set_ylabel("mean accuracy, adapted minus base LM (points)")
        else:
            axes.set_ylabel("perplexity, adapted against base LM (%)")
            axes.invert_yaxis()
        axes.set_title("ASR against text ability (upper left is best)", fontsize=10)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def draw_curves(arms: Sequence[ArmResults], path: Union[str, Path]) -> None:
    """Draw the loss of each epoch: validation solid, training dotted.

    No file is written where no training has recorded its curve.
    """
    Path(path).unlink(missing_ok=True)
    if not any(arm.curves for arm in arms):
        return
    with drawing(path, 7, 5) as axes:
        for i, arm in enumerate(arms):
            for phase, style in (("valid", "-"), ("train", ":")):
                losses = arm.curves.get(phase, [])
                label = arm.name if phase == "valid" else None
                epochs = range(1, len(losses) + 1)
                axes.plot(epochs, losses, style, markersize=4, label=label, **_look(i))
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss (nats per token)")
        axes.set_title("Validation (solid) and training (dotted)", fontsize=10)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
