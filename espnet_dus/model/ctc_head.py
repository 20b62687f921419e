"""The CTC head, which reads the output of one layer of the LM."""

from typing import List, Tuple

import torch
from espnet2.asr.ctc import CTC

from espnet_dus.data.ctc_units import BLANK, UNKNOWN, CTCUnits


class CTCHead(torch.nn.Module):
    """A norm, if the residual stream needs one, and ESPnet's CTC.

    Above base layers a few dimensions of the residual stream are hundreds of times
    larger than the rest, so the input is normalized. Below the first base layer it is
    not: the CTC loss then keeps the stream at the embeddings' scale; with a norm it
    grew a thousandfold.

    Args:
        hidden_size: Hidden size of the layer it reads (D).
        num_units: Number of units, the blank included (U).
        has_norm: Whether the input is normalized.
        dropout_rate: Dropout on the input.
    """

    def __init__(
        self,
        hidden_size: int,
        num_units: int,
        has_norm: bool,
        dropout_rate: float = 0.1,
    ):
        super().__init__()
        self.norm = torch.nn.LayerNorm(hidden_size) if has_norm else torch.nn.Identity()
        # not ESPnet's own, which drops in validation too
        self.dropout = torch.nn.Dropout(dropout_rate)
        self.ctc = CTC(num_units, hidden_size, dropout_rate=0.0, reduce=False)

    def forward(
        self,
        x_BSD: torch.Tensor,
        lengths_B: torch.Tensor,
        units_BN: torch.Tensor,
        unit_lengths_B: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Sum the CTC loss over the utterances that CTC can place, see `placed`.

        Args:
            x_BSD: (B, S, D) hidden states of the speech positions.
            lengths_B: (B,) number of these positions.
            units_BN: (B, N) unit ids.
            unit_lengths_B: (B,) number of units.

        Returns:
            The sum, a scalar, and the number of units in it, at least 1.
        """
        x_BSD = self.dropout(self.norm(x_BSD.float()))
        placed_B = placed(lengths_B, units_BN, unit_lengths_B)
        # not ESPnet's forward, which waits for the GPU once for each utterance
        logits_SBU = self.ctc.ctc_lo(x_BSD).transpose(0, 1)
        losses_B = self.ctc.loss_fn(logits_SBU, units_BN, lengths_B, unit_lengths_B)
        losses_B = losses_B * len(lengths_B)  # ESPnet has divided by the batch size
        return (losses_B * placed_B).sum(), (unit_lengths_B * placed_B).sum().clamp(1)

    @torch.no_grad()
    def start_at_embeddings(self, units: CTCUnits, lm: torch.nn.Module) -> None:
        """Start the weights of `llm` units at the LLM's embeddings of these tokens.

        What the added layers learn from CTC then points where the LLM's own embedding
        of that token does, so that the LLM can read it sooner. The blank starts at a
        space.

        Args:
            units: Of the type `llm`.
            lm: Its input embeddings are read.
        """
        embeddings_VD = lm.get_input_embeddings().weight
        space = units.tokenizer.tokenize(" ")[:1]  # a few tokenizers give none
        tokens = [*space, *units.units[UNKNOWN + 1 :]]
        rows = [*[BLANK] * len(space), *range(UNKNOWN + 1, len(units))]
        ids = units.tokenizer.convert_tokens_to_ids(tokens)
        self.ctc.ctc_lo.weight[rows] = embeddings_VD[ids].float()

    def log_probs(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities (B, S, U) of the units."""
        return self.ctc.log_softmax(self.norm(x_BSD.float()))

    @torch.no_grad()
    def best_units(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """Return the best unit (B, S) of each position of (B, S, D)."""
        return self.ctc.argmax(self.norm(x_BSD.float()))

    @torch.no_grad()
    def greedy(self, x_BSD: torch.Tensor, lengths_B: torch.Tensor) -> List[List[int]]:
        """Return the unit ids of the best path of each utterance."""
        return collapse(self.best_units(x_BSD), lengths_B)


def placed(
    lengths_B: torch.Tensor, units_BN: torch.Tensor, unit_lengths_B: torch.Tensor
) -> torch.Tensor:
    """Return which transcripts CTC can place (B,), and so can be trained on.

    A transcript needs a speech position for each unit, and one between equal units. One
    without units has nothing to place.
    """
    repeated_BN = (units_BN[:, 1:] == units_BN[:, :-1]) & (units_BN[:, 1:] >= 0)
    fits_B = unit_lengths_B + repeated_BN.sum(1) <= lengths_B
    return fits_B & (unit_lengths_B > 0)


def collapse(path_BS: torch.Tensor, lengths_B: torch.Tensor) -> List[List[int]]:
    """Return the unit ids of CTC paths (B, S), without repetitions and blanks."""
    results = []
    for path_S, length in zip(path_BS, lengths_B.tolist()):
        units = torch.unique_consecutive(path_S[:length]).tolist()
        results.append([unit for unit in units if unit != BLANK])
    return results
