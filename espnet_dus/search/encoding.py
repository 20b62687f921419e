"""What every search starts from: the speech as the LLM is to see it, and the CTC head.

Dimensions: B utterances, S speech positions, N positions that the LLM reads, D hidden,
U CTC units.
"""

from typing import Dict, NamedTuple, Optional, Tuple

import torch

from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.sequence import Sequence
from espnet_dus.model.upscaling import SpeechMaskMixin


class Encoded(NamedTuple):
    """The speech of a batch.

    Attributes:
        read_BND: What the LLM reads of the speech, padded at the right.
        read_B: So many positions for each utterance: those of speech or, where they are
            compressed, the units heard.
        lengths_B: Speech positions of each utterance.
        through_layers: Whether the inserted layers have worked on it already, so that
            the LLM is not to be told where the speech is.
        ctc_BSU: Log-probabilities of the CTC units, or None where none were asked for.
    """

    read_BND: torch.Tensor
    read_B: torch.Tensor
    lengths_B: torch.Tensor
    through_layers: bool
    ctc_BSU: Optional[torch.Tensor]


@torch.inference_mode()
def encode(
    model: ESPnetDUSModel,
    speech: torch.Tensor,
    speech_lengths: torch.Tensor,
    with_ctc: bool = False,
) -> Encoded:
    """Embed speech and, if asked, run the LM up to the layer that the CTC head reads.

    Where all inserted layers work on speech only and stand before the first base layer,
    they are the encoder of an encoder-decoder: they run here, once, and a search over
    many hypotheses or with a draft meets the base LM alone.

    Args:
        model: In eval mode.
        speech: (B, samples) or features (B, F, M), padded at the right.
        speech_lengths: (B,).
        with_ctc: Give the CTC head's log-probabilities too.

    Raises:
        TooShortUttError: An utterance is too short for the subsampling.
        ValueError: CTC is asked of a model without a CTC head.
    """
    if with_ctc:
        check_ctc_head(model)
    with model.autocast():
        speech_BSD, lengths_B = model.embed_speech(speech, speech_lengths)
        if not with_ctc and not model.has_encoder:
            return Encoded(speech_BSD, lengths_B, lengths_B, False, None)
        hidden_BSD = model.run_to_ctc_layer(speech_BSD, lengths_B)
        read_BND, read_B = speech_BSD, lengths_B
        if model.compression is not None:
            read_BND, read_B = model.compress(hidden_BSD, lengths_B)
        elif model.has_encoder:
            read_BND = hidden_BSD
    ctc_BSU = None
    if with_ctc:
        ctc_BSU = model.ctc.ctc.log_softmax(model.ctc.norm(hidden_BSD.float()))
    return Encoded(read_BND, read_B, lengths_B, model.has_encoder, ctc_BSU)


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


def prefix(
    model: ESPnetDUSModel, encoded: Encoded
) -> Tuple[Sequence, Dict[str, torch.Tensor]]:
    """Give what stands before the text: [speech][prompt], padded at the left.

    Returns:
        The sequence, and the masks (B, T) that the LM takes with it: `attention_mask`
        and, where it has layers that are to be told, `speech_mask`.
    """
    read_B = encoded.read_B
    no_text_B0 = read_B.new_zeros((len(read_B), 0))
    seq = model.join_text(
        encoded.read_BND, read_B, no_text_B0, torch.zeros_like(read_B), "left"
    )
    masks = {"attention_mask": seq.attention_mask_BT}
    # the other arms' LM refuses it
    if isinstance(model.lm, SpeechMaskMixin) and not encoded.through_layers:
        masks["speech_mask"] = seq.speech_mask_BT
    return seq, masks
