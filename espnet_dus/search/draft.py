"""The CTC head's transcript as a draft that the LLM verifies: speculative decoding.

The LLM reads the draft in one pass and says at each token what it would have written
itself. What agrees is accepted; at the first difference the LLM's own token stands, and
the rest of the draft is proposed again from where the two meet. The result is that of
greedy search (Leviathan et al., arXiv 2211.17192, with a temperature of 0), in as many
passes as there are differences, and one. In bfloat16, a pass over several tokens and a
pass over one may round differently, so that of two tokens as good as each other either
may be taken.
"""

from typing import List, Sequence

import torch

from espnet_dus.data.ctc_units import UNKNOWN, transcript_tokens
from espnet_dus.model.ctc_head import collapse
from espnet_dus.model.espnet_model import ESPnetDUSModel

# Tokens proposed where the text has just departed from the draft: the rest of it is
# likely to be wrong there.
NUM_TRIED = 4
# Tokens of all utterances in a pass up to which it takes little longer than with one of
# each: until then, reading the weights is what takes the time. The GPU's is an estimate
# of an H100's operations for a byte read; it was not run on one.
CHEAP_TOKENS_CPU = 32
CHEAP_TOKENS_GPU = 256


class Draft:
    """A draft, and how far the text has got in it.

    Args:
        tokens: Token ids; none: there is no draft.
    """

    def __init__(self, tokens: Sequence[int] = ()):
        self.tokens = list(tokens)
        # edit distance from the text so far to the first j tokens of the draft
        self.distances = list(range(len(self.tokens) + 1))
        self.last: int = -1

    def advance(self, token: int) -> None:
        """Take note of the text's next token."""
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
        """Give what the draft says comes next, few tokens where it has just been wrong.

        Args:
            most: At most so many tokens.
        """
        if not self.tokens or most < 1:
            return []

        def agrees(j: int) -> bool:
            return self.tokens[j - 1] == self.last if j else self.last == -1

        # the best place; of equally good ones, where the two agree, or the furthest
        places = range(len(self.tokens) + 1)
        place = min(places, key=lambda j: (self.distances[j], not agrees(j), -j))
        if not agrees(place):
            most = min(most, NUM_TRIED)
        return self.tokens[place : place + most]


def ctc_drafts(
    model: ESPnetDUSModel, ctc_BSU: torch.Tensor, lengths_B: torch.Tensor
) -> List[Draft]:
    """Make each utterance's draft of the CTC head's best path.

    Args:
        model: With a CTC head. Units of the type `llm` are the LLM's tokens; the text
            of any other goes through its tokenizer.
        ctc_BSU: (B, S, U) log-probabilities.
        lengths_B: (B,) speech positions.
    """
    units, tokenizer = model.ctc_units, model.tokenizer
    drafts = []
    for ids in collapse(ctc_BSU.argmax(-1), lengths_B):
        if units.type == "llm":
            pieces = [units.units[i] for i in ids if i != UNKNOWN]
            tokens = tokenizer.convert_tokens_to_ids(pieces)
        else:
            text = units.decode(ids)
            pieces = transcript_tokens(tokenizer, text) if text else []
            tokens = tokenizer.convert_tokens_to_ids(pieces)
        drafts.append(Draft(tokens))
    return drafts
