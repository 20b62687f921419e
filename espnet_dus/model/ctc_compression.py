"""CTC compression: the LLM reads one vector for each unit that the CTC head has heard.

    speech positions  .   .   yes yes  .   .   no   .
    the LLM reads             yes              no

At 12.5 positions a second most are blanks, and what a text LLM does by itself, repeat
what it has read, it does badly with gaps between the tokens: SmolLM2-135M repeats an
AN4 transcript given as embeddings with a token accuracy of 0.46, of 0.06 with a gap
behind each. So runs of the same unit are averaged and blanks left out (Gaido et al.,
"CTC-based Compression for Direct Speech Translation", EACL 2021). To the mean, brought
to the length of a token embedding, the embedding of the unit's token is added: the LLM
reads what CTC has written and, beside it, how that sounded.

Dimensions: B utterances, S speech positions, N units heard, D hidden.
"""

from typing import Sequence, Tuple

import torch

from espnet_dus.data.ctc_units import UNKNOWN


class CTCCompression:
    """Speech positions to units heard.

    Args:
        token_ids: The token of the base LM for each CTC unit; that of the blank and of
            the unknown is not used.
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
            x_BSD: (B, S, D) what the CTC head reads, padded at the right.
            lengths_B: (B,).
            units_BS: long (B, S), the best unit of each position.
            embeddings: The base LM's token embeddings.

        Returns:
            (B, N, D) float32, padded at the right; N may be 0. And their lengths (B,).
        """
        batch, num_positions, _ = x_BSD.shape
        place_S = torch.arange(num_positions, device=x_BSD.device)
        heard_BS = (units_BS > UNKNOWN) & (place_S[None] < lengths_B[:, None])
        new_BS = torch.ones_like(heard_BS)
        new_BS[:, 1:] = units_BS[:, 1:] != units_BS[:, :-1]
        run_BS = (heard_BS & new_BS).cumsum(1)  # from 1; 0 takes what is not heard
        num_B = run_BS[:, -1]
        most = int(num_B.max())
        run_BS = run_BS.masked_fill(~heard_BS, 0)

        sums_BND = x_BSD.new_zeros((batch, most + 1, x_BSD.size(2)), dtype=torch.float)
        index_BSD = run_BS[..., None].expand_as(x_BSD)
        sums_BND = sums_BND.scatter_add(1, index_BSD, x_BSD.float())[:, 1:]
        # the length of a mean is that of its sum, once it is brought to a given length
        mean_square_BN1 = sums_BND.pow(2).mean(-1, keepdim=True)
        sound_BND = sums_BND * self.embedding_rms * (mean_square_BN1 + 1e-20).rsqrt()
        unit_BN = units_BS.new_zeros((batch, most + 1)).scatter(1, run_BS, units_BS)
        tokens_U = torch.tensor(self.token_ids, device=x_BSD.device)
        token_BND = embeddings(tokens_U[unit_BN[:, 1:]]).float()
        return sound_BND + token_BND, num_B
