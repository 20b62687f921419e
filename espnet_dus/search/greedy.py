"""Greedy search, batched over utterances, with the base LM's and our own caches.

Dimensions: B utterances, T positions of the prefill, N generated tokens, V vocabulary.
"""

import math
from typing import List

import torch
from transformers import GenerationConfig, StoppingCriteria

from espnet_dus.model import ESPnetDUSModel, Hypothesis
from espnet_dus.upscaling import SpeechMaskMixin


class PerUtteranceLength(StoppingCriteria):
    """Ends each utterance at its own limit, so that its batch mates do not matter."""

    def __init__(self, limits_B: torch.Tensor):
        self.limits_B = limits_B

    def __call__(self, input_ids: torch.Tensor, scores, **_) -> torch.Tensor:
        """Tell who is done; with embeddings as prompt, all ids are new."""
        return self.limits_B <= input_ids.size(1)


@torch.inference_mode()
def greedy_search(
    model: ESPnetDUSModel,
    speech: torch.Tensor,
    speech_lengths: torch.Tensor,
    maxlenratio: float = 1.0,
) -> List[Hypothesis]:
    """Transcribe a batch, taking the best token at each step.

    Args:
        model: In eval mode.
        speech: (B, samples) or features (B, F, M), padded at the right.
        speech_lengths: (B,).
        maxlenratio: At most so many tokens for a speech position, and at least one.

    Returns:
        A hypothesis for each utterance, the same as it would get alone.

    Raises:
        TooShortUttError: An utterance is too short for the subsampling.
    """
    with model.autocast():
        speech_BSD, lengths_B = model.embed_speech(speech, speech_lengths)
        no_text_B0 = speech_lengths.new_zeros((len(speech_lengths), 0))
        no_lengths_B = torch.zeros_like(lengths_B)
        seq = model.join_text(speech_BSD, lengths_B, no_text_B0, no_lengths_B, "left")
        masks = {"attention_mask": seq.attention_mask_BT}
        if isinstance(model.lm, SpeechMaskMixin):  # the other arms' LM refuses it
            masks["speech_mask"] = seq.speech_mask_BT
        limits_B = (lengths_B * maxlenratio).ceil().clamp(min=1).long()
        generated = model.lm.generate(
            inputs_embeds=seq.inputs_BTD,
            **masks,
            generation_config=GenerationConfig(
                max_new_tokens=int(limits_B.max()),
                do_sample=False,
                eos_token_id=model.eos_id,
                pad_token_id=model.eos_id,
                return_dict_in_generate=True,
                output_logits=True,
            ),
            stopping_criteria=[PerUtteranceLength(limits_B)],
        )
    logits_NBV = torch.stack(generated.logits).float()
    log_probs_BN = logits_NBV.log_softmax(-1).amax(-1).T
    results = []
    for ids, log_probs, limit in zip(
        generated.sequences.tolist(), log_probs_BN.tolist(), limits_B.tolist()
    ):
        ids = ids[:limit]
        end = ids.index(model.eos_id) if model.eos_id in ids else len(ids)
        score = math.fsum(log_probs[: min(end + 1, len(ids))])
        results.append(hypothesis(model, ids[:end], score))
    return results


def hypothesis(model: ESPnetDUSModel, ids: List[int], score: float) -> Hypothesis:
    """Turn token ids, without EOS, into a hypothesis."""
    return Hypothesis(
        text=model.tokenizer.decode(ids, skip_special_tokens=True).strip(),
        token=model.tokenizer.convert_ids_to_tokens(ids),
        token_int=ids,
        score=score,
    )
