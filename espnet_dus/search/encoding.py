"""What every search starts from: the speech as the LLM is to see it, and the CTC head.

Dimensions: B utterances, S speech positions, D hidden, U CTC units.
"""

from contextlib import contextmanager
from typing import Dict, Iterator, NamedTuple, Optional, Tuple

import torch

from espnet_dus.model import ESPnetDUSModel
from espnet_dus.sequence import Sequence, join
from espnet_dus.upscaling import SpeechMaskMixin


class Encoded(NamedTuple):
    """The speech of a batch.

    Attributes:
        speech_BSD: What the LLM is given at the speech positions, padded at the right.
        lengths_B: Speech positions of each utterance.
        through_layers: Whether the inserted layers have worked on it already, so that
            the LLM is not to be told where the speech is.
        ctc_BSU: Log-probabilities of the CTC units, or None where none were asked for.
    """

    speech_BSD: torch.Tensor
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
        is_encoder = _is_encoder(model)
        if not with_ctc and not is_encoder:
            return Encoded(speech_BSD, lengths_B, False, None)
        no_text_B0D = speech_BSD.new_zeros(len(lengths_B), 0, speech_BSD.size(2))
        dtype = model.lm.get_input_embeddings().weight.dtype
        seq = join(
            speech_BSD.to(dtype),
            lengths_B,
            no_text_B0D,
            torch.zeros_like(lengths_B),
            "right",
        )
        with _up_to_the_ctc_layer(model):
            _, hidden_BSD = model.run_lm(seq)
    ctc_BSU = None
    if with_ctc:
        ctc_BSU = model.ctc.ctc.log_softmax(model.ctc.norm(hidden_BSD.float()))
    if is_encoder:
        speech_BSD = hidden_BSD
    return Encoded(speech_BSD, lengths_B, is_encoder, ctc_BSU)


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
    lengths_B = encoded.lengths_B
    no_text_B0 = lengths_B.new_zeros((len(lengths_B), 0))
    seq = model.join_text(
        encoded.speech_BSD, lengths_B, no_text_B0, torch.zeros_like(lengths_B), "left"
    )
    masks = {"attention_mask": seq.attention_mask_BT}
    # the other arms' LM refuses it
    if isinstance(model.lm, SpeechMaskMixin) and not encoded.through_layers:
        masks["speech_mask"] = seq.speech_mask_BT
    return seq, masks


def _is_encoder(model: ESPnetDUSModel) -> bool:
    """Tell whether the inserted layers end below base layer 0, at the CTC layer."""
    inserted = getattr(model.lm.config, "depth_up_scaling", None)
    return (
        inserted is not None
        and inserted["scope"] == "speech"
        and set(inserted["positions"]) == {-1}
        and model.ctc_layer == len(inserted["positions"]) - 1
    )


@contextmanager
def _up_to_the_ctc_layer(model: ESPnetDUSModel) -> Iterator[None]:
    """Let the LM's forward pass end at the layer that the CTC head reads."""
    before, model.ctc_only = model.ctc_only, True
    try:
        yield
    finally:
        model.ctc_only = before
