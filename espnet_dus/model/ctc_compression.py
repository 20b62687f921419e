"""CTC compression: the LLM reads one vector for each unit that CTC recognizes.

    speech positions  .   .   yes yes  .  <unk>  .   no   .
    the LLM reads             yes         <unk>      no

At 12.5 positions per second most are blanks, and a text LLM repeats its input badly
when there are gaps between the tokens: SmolLM2-135M repeats an AN4 transcript given as
embeddings with a token accuracy of 0.46, and of 0.06 with a gap after each token. So
runs of the same unit are averaged and blanks removed (Gaido et al., "CTC-based
Compression for Direct Speech Translation", EACL 2021). The mean is rescaled to the norm
of a token embedding and added to the embedding of the unit's token: the LLM reads what
CTC wrote and how it sounded. `<unk>` has no token, so the LLM reads its sound alone.

Dimensions: B utterances, S speech positions, N recognized units, D hidden.
"""

from typing import Sequence, Tuple

import torch

from espnet_dus.data.ctc_units import BLANK, UNKNOWN


class CTCCompression:
    """Maps speech positions to one vector for each recognized unit.

    Args:
        token_ids: The base LM's token of each CTC unit; those of the blank and of
            `<unk>` are not used.
        embedding_rms: Root mean square of the base LM's token embeddings.
    """

    def __init__(self, token_ids: Sequence[int], embedding_rms: float):
        self.token_ids = list(token_ids)
        self.embedding_rms = embedding_rms

    def __call__(
        self,
        x_BSD: torch.Tensor,
        lengths_B: torch.Tensor,
        units_BS: torch.Tensor,
        embeddings: torch.nn.Module,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Compress a batch.

        Args:
            x_BSD: (B, S, D) input of the CTC head, padded at the right.
            lengths_B: (B,).
            units_BS: (B, S) long, the best unit of each position.
            embeddings: The base LM's token embeddings.

        Returns:
            (B, N, D) float32, padded at the right (N may be 0), and the lengths (B,).
        """
        batch, num_positions, _ = x_BSD.shape
        place_S = torch.arange(num_positions, device=x_BSD.device)
        heard_BS = (units_BS != BLANK) & (place_S[None] < lengths_B[:, None])
        new_BS = torch.ones_like(heard_BS)
        new_BS[:, 1:] = units_BS[:, 1:] != units_BS[:, :-1]
        run_BS = (heard_BS & new_BS).cumsum(1)  # from 1; run 0 collects the blanks
        num_B = run_BS[:, -1]
        most = int(num_B.max())
        run_BS = run_BS.masked_fill(~heard_BS, 0)

        sums_BND = x_BSD.new_zeros((batch, most + 1, x_BSD.size(2)), dtype=torch.float)
        index_BSD = run_BS[..., None].expand_as(x_BSD)
        sums_BND = sums_BND.scatter_add(1, index_BSD, x_BSD.float())[:, 1:]
        # rescaled to a given norm, the sum equals the mean
        mean_square_BN1 = sums_BND.pow(2).mean(-1, keepdim=True)
        sound_BND = sums_BND * self.embedding_rms * (mean_square_BN1 + 1e-20).rsqrt()
        unit_BN = units_BS.new_zeros((batch, most + 1)).scatter(1, run_BS, units_BS)
        unit_BN = unit_BN[:, 1:]
        tokens_U = torch.tensor(self.token_ids, device=x_BSD.device)
        token_BND = embeddings(tokens_U[unit_BN]).float()
        token_BND = token_BND.masked_fill(unit_BN[..., None] == UNKNOWN, 0.0)
        return sound_BND + token_BND, num_B
