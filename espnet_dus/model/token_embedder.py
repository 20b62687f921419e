"""The token embedder: discrete speech tokens -> the base LM's embedding space.

Vocabulary expansion as in OpusLM (Tian et al., arXiv 2506.17611): the rows of speech
tokens are new and trained; text rows and LM head stay those of the base LM.

Dimensions: B utterances, S frames and speech positions, K streams, D hidden.
"""

from typing import Sequence, Tuple

import torch
from espnet2.layers.mask_along_axis import MaskAlongAxisVariableMaxWidth


class TokenEmbedder(torch.nn.Module):
    """One table of rows for all streams; a frame is the sum of its streams' rows.

    Args:
        vocab_sizes: Number of different tokens of each stream (K).
        hidden_size: The base LM's hidden size (D).
        num_time_mask: Number of masks along time in training: the counterpart of
            SpecAugment. Masked frames are replaced by a trained row. 0: no masking.
        time_mask_width_ratio_range: Smallest and largest width of a mask, as a share of
            the longest utterance of the batch.
        dropout_rate: Dropout on the embeddings.

    Raises:
        ValueError: An option has a value that does not fit.
    """

    def __init__(
        self,
        vocab_sizes: Sequence[int],
        hidden_size: int,
        num_time_mask: int = 10,
        time_mask_width_ratio_range: Sequence[float] = (0.0, 0.05),
        dropout_rate: float = 0.0,
    ):
        super().__init__()
        widths = tuple(map(float, time_mask_width_ratio_range))
        if len(widths) != 2 or not 0 <= widths[0] < widths[1] <= 1:
            raise ValueError(
                f"time_mask_width_ratio_range: {list(widths)} is not a smallest and a "
                "larger largest share between 0 and 1"
            )
        if num_time_mask < 0:
            raise ValueError(f"num_time_mask: {num_time_mask} is below 0")
        self.vocab_sizes = tuple(vocab_sizes)
        self.table = torch.nn.EmbeddingBag(sum(vocab_sizes), hidden_size, mode="sum")
        self.mask_time = None
        if num_time_mask:
            self.mask_time = MaskAlongAxisVariableMaxWidth(widths, num_time_mask)
            self.mask_row = torch.nn.Parameter(torch.zeros(hidden_size))
        self.dropout = torch.nn.Dropout(dropout_rate)

    @torch.no_grad()
    def start_at_embeddings(self, embed: torch.nn.Module) -> None:
        """Start at the mean and spread, per dimension, of the text embeddings.

        With several streams each row has its share of both, so that a frame, the sum
        of K rows, starts at the mean and spread of a text token.

        Args:
            embed: The base LM's input embeddings.
        """
        every_token_V = torch.arange(embed.num_embeddings, device=embed.weight.device)
        text_VD = embed(every_token_V).float().to(self.table.weight.device)
        mean_D, std_D = text_VD.mean(0), text_VD.std(0)
        num_streams = len(self.vocab_sizes)
        self.table.weight.normal_().mul_(std_D * num_streams**-0.5)
        self.table.weight.add_(mean_D / num_streams)
        if self.mask_time is not None:
            self.mask_row.copy_(mean_D)

    def forward(
        self, tokens_BSK: torch.Tensor, lengths_B: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Embed tokens.

        Args:
            tokens_BSK: (B, S, K) integers; padding, on the right, may be anything.
            lengths_B: (B,) frames of each utterance.

        Returns:
            (B, S, D) speech embeddings and (B,) their lengths, which are the frames.

        Raises:
            ValueError: The number of streams is another one, or a token is not in the
                table.
        """
        tokens_BSK = tokens_BSK[:, : int(lengths_B.max())].long()
        if tokens_BSK.dim() != 3 or tokens_BSK.size(2) != len(self.vocab_sizes):
            raise ValueError(
                f"speech tokens of shape {tuple(tokens_BSK.shape)}: expected "
                f"(utterances, frames, {len(self.vocab_sizes)} streams)"
            )
        sizes_K = torch.tensor(self.vocab_sizes, device=tokens_BSK.device)
        offsets_K = sizes_K.cumsum(0) - sizes_K
        frames_S = torch.arange(tokens_BSK.size(1), device=tokens_BSK.device)
        real_BS1 = (frames_S[None] < lengths_B[:, None])[..., None]
        unknown_BSK = (tokens_BSK < 0) | (tokens_BSK >= sizes_K)
        if (unknown_BSK & real_BS1).any():
            self._refuse(tokens_BSK, unknown_BSK & real_BS1)
        rows_BSK = (tokens_BSK + offsets_K).masked_fill(~real_BS1, 0)
        x_BSD = self.table(rows_BSK.flatten(0, 1)).unflatten(0, rows_BSK.shape[:2])
        if self.training and self.mask_time is not None:
            kept_BS1 = self.mask_time(torch.ones_like(x_BSD[..., :1]))[0].bool()
            x_BSD = torch.where(kept_BS1, x_BSD, self.mask_row.to(x_BSD.dtype))
        return self.dropout(x_BSD), lengths_B

    def _refuse(self, tokens_BSK: torch.Tensor, unknown_BSK: torch.Tensor) -> None:
        b, s, k = unknown_BSK.nonzero()[0].tolist()
        raise ValueError(
            f"speech token {int(tokens_BSK[b, s, k])} (utterance {b} of the batch, "
            f"frame {s}, stream {k}) is not in the table: the tokenizer's tokens of "
            f"this stream go from 0 to {self.vocab_sizes[k] - 1}. Were the data made "
            "with another tokenizer (--speech_tokenizer)?"
        )
