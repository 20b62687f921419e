"""The CTC head's transcript as a draft that the LLM verifies: speculative decoding.

The LLM reads the draft in one pass and predicts its own token at each position. Equal
tokens are accepted; at the first difference the LLM's own token is taken, and the rest
of the draft is proposed again from where the two meet. The result equals that of greedy
search (Leviathan et al., arXiv 2211.17192, with a temperature of 0), in one pass more
than there are differences. In bfloat16, passes over several tokens and over one may
round differently, so that ties may be broken differently.
"""

from typing import List, Sequence

import torch

from espnet_dus.data.ctc_units import UNKNOWN, transcript_tokens
from espnet_dus.model.ctc_head import collapse
from espnet_dus.model.espnet_model import ESPnetDUSModel

# Tokens proposed where the text has just departed from the draft, whose rest is then
# likely to be wrong.
NUM_TRIED = 4
# Tokens of all utterances up to which a pass takes little longer than with one token
# each, because reading the weights dominates. The GPU's number is an estimate from an
# H100's operations per byte read; it was not measured.
CHEAP_TOKENS_CPU = 32
CHEAP_TOKENS_GPU = 256


class Draft:
    """A draft, and how far the text has followed it.

    Args:
        tokens: Token ids; empty: no draft.
    """

    def __init__(self, tokens: Sequence[int] = ()):
        self.tokens = list(tokens)
        # edit distance from the text so far to the first j tokens of the draft
        self.distances = list(range(len(self.tokens) + 1))
        self.last: int = -1

    def advance(self, token: int) -> None:
        """Record the text's next token."""
        before, self.last = self.distances, token
        self.distances = [before[0] + 1]
        for j, drafted in enumerate(self.tokens, 1):
            self.distances.append(
                min(
                    before[j - 1] + (token != drafted),
                    before[j] + 1,
                    self.distances[j - 1] + 1,
                )
            )

    def rest(self, most: int) -> List[int]:
        """Return the draft's next tokens, few of them where it has just been wrong.

        Args:
            most: Maximum number of tokens.
        """
        if not self.tokens or most < 1:
            return []

        def agrees(j: int) -> bool:
            return self.tokens[j - 1] == self.last if j else self.last == -1

        # the best index; among ties one where the two agree, then the last
        indices = range(len(self.tokens) + 1)
        index = min(indices, key=lambda j: (self.distances[j], not agrees(j), -j))
        if not agrees(index):
            most = min(most, NUM_TRIED)
        return self.tokens[index : index + most]


def ctc_drafts(
    model: ESPnetDUSModel, ctc_BSU: torch.Tensor, lengths_B: torch.Tensor
) -> List[Draft]:
    """Return each utterance's draft: the CTC head's best path.

    Args:
        model: With a CTC head. Units of type `llm` are the LLM's tokens; the text of
            units of another type is tokenized.
        ctc_BSU: (B, S, U) log-probabilities.
        lengths_B: (B,) speech positions.
    """
    units, tokenizer = model.ctc_units, model.tokenizer
    drafts = []
    for ids in collapse(ctc_BSU.argmax(-1), lengths_B):
        if units.type == "llm":
            pieces = [units.units[i] for i in ids if i != UNKNOWN]
        else:
            text = units.decode(ids)
            pieces = transcript_tokens(tokenizer, text) if text else []
        drafts.append(Draft(tokenizer.convert_tokens_to_ids(pieces)))
    return drafts
