"""The LLM over a batch of utterances: tokens are added, and some removed again.

The cache is left-padded, so that an utterance's text directly follows its speech and
prompt, independent of how many tokens the other utterances have accepted.

    [pad pad][speech][prompt][text]      context
    [new tokens][pad]                    added by a pass

Dimensions: B utterances, T positions in the cache, N new positions, D hidden, V
vocabulary, H heads.
"""

from typing import List, Sequence

import torch
from transformers.cache_utils import DynamicCache

from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.speech_lm import Encoded


class CachedLM:
    """The LLM passes of a batch.

    Args:
        model: In eval mode.
        encoded: The batch's speech.
    """

    def __init__(self, model: ESPnetDUSModel, encoded: Encoded):
        self.model = model
        self.context, masks = model.prefix(encoded)
        self.mask_BT = masks["attention_mask"]
        self.speech_mask_BT = masks.get("speech_mask")  # of the context
        self.cache = DynamicCache()
        self.num_new = 0

    def feed(self, tokens: Sequence[List[int]]) -> torch.Tensor:
        """Run the LLM over new tokens; the first time, over speech and prompt too.

        Args:
            tokens: New token ids of each utterance; the first time possibly none.

        Returns:
            (B, N, V) logits after each new token of the longest list; the first time
            (B, 1 + N, V), beginning with those after the prompt.
        """
        first = self.context is not None
        device = self.mask_BT.device
        self.num_new = max(map(len, tokens))
        padded = [
            ids + [self.model.eos_id] * (self.num_new - len(ids)) for ids in tokens
        ]
        tokens_BN = torch.tensor(padded, dtype=torch.long, device=device)
        lengths_B = torch.tensor([len(ids) for ids in tokens], device=device)
        steps_N = torch.arange(self.num_new, device=device)
        new_BN = (steps_N[None] < lengths_B[:, None]).to(self.mask_BT.dtype)
        mask_BT = torch.cat([self.mask_BT, new_BN], dim=1)
        inputs_BND = self.model.lm.get_input_embeddings()(tokens_BN)
        masks = {}
        if first:
            inputs_BND = torch.cat([self.context.inputs_BTD, inputs_BND], dim=1)
            if self.speech_mask_BT is not None:
                masks["speech_mask"] = torch.nn.functional.pad(
                    self.speech_mask_BT, (0, self.num_new)
                )
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        logits_BNV = self.model.lm(
            inputs_embeds=inputs_BND,
            attention_mask=mask_BT,
            position_ids=positions_BT[:, -inputs_BND.size(1) :],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=self.num_new + first,
            **masks,
        ).logits
        self.mask_BT, self.context = mask_BT, None
        return logits_BNV

    def keep(self, num_kept: Sequence[int], rows: Sequence[int]) -> None:
        """Remove rejected tokens and finished utterances.

        Args:
            num_kept: Number of new tokens that each utterance of the batch keeps.
            rows: Rows of the utterances that continue; they become the batch.
        """
        device = self.mask_BT.device
        drop_B = self.num_new - torch.tensor(
            [num_kept[row] for row in rows], device=device
        )
        rows_B = torch.tensor(rows, device=device)
        same_rows = len(rows) == len(self.mask_BT)
        mask_BT = self.mask_BT if same_rows else self.mask_BT[rows_B]
        # dropped tokens move to the left, out of the mask
        index_BT = torch.arange(mask_BT.size(1), device=device) - drop_B[:, None]
        mask_BT = mask_BT.gather(1, index_BT.clamp(min=0)) * (index_BT >= 0)
        num_padding = int(mask_BT.argmax(1).min())
        self.mask_BT = mask_BT[:, num_padding:]
        moved = bool(drop_B.any())
        index_BT = index_BT[:, num_padding:].clamp(min=0)

        def select(x_BHTD: torch.Tensor) -> torch.Tensor:
            if not same_rows:
                x_BHTD = x_BHTD[rows_B]
            if not moved:
                return x_BHTD[:, :, num_padding:]
            index_BHTD = index_BT[:, None, :, None].expand(
                -1, x_BHTD.size(1), -1, x_BHTD.size(3)
            )
            return x_BHTD.gather(2, index_BHTD)

        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = select(layer.keys), select(layer.values)
