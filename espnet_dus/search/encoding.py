"""What every search starts from: the speech as the LLM reads it, and the CTC head.

Dimensions: B utterances, F feature frames, M features.
"""

from typing import Optional

import torch

from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.speech_lm import Encoded, TextBefore


@torch.inference_mode()
def encode(
    model: ESPnetDUSModel,
    speech: torch.Tensor,
    speech_lengths: torch.Tensor,
    with_ctc: bool = False,
    before: Optional[TextBefore] = None,
) -> Encoded:
    """Embed speech and prepare it for a search, see `SpeechLM.encode`.

    Args:
        model: In eval mode.
        speech: (B, samples), features (B, F, M) or tokens, padded on the right.
        speech_lengths: (B,).
        with_ctc: Return the CTC head's log-probabilities too.
        before: Text before the speech.

    Raises:
        TooShortUttError: An utterance is too short for the subsampling.
        ValueError: CTC is requested from a model without a CTC head.
    """
    if with_ctc:
        check_ctc_head(model)
    with model.autocast():
        embedded = model.embed_speech(speech, speech_lengths)
        return model.encode(*embedded, with_ctc, before)


def check_ctc_head(model: ESPnetDUSModel) -> None:
    """Check that there is a CTC head to read.

    Raises:
        ValueError: There is none.
    """
    if model.ctc is None:
        raise ValueError(
            "draft, ctc_weight and word_times need a CTC head: this model was trained "
            "without a CTC head (no ctc_units in its config.yaml)"
        )
