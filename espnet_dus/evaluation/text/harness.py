"""lm-evaluation-harness's LM on a loaded model; its head runs on continuations only.

Dimensions: B batch, L tokens, V vocabulary.
"""

from typing import Dict, List, Optional, Sequence, Tuple

import torch
from lm_eval.models.huggingface import HFLM
from torch.nn.utils.rnn import pad_sequence

from espnet_dus.io import progress

# With a vocabulary of 49,152 the logits of this many tokens are 3.2 GB in float32.
MAX_BATCH_TOKENS = 16384

Request = Tuple[object, List[int], List[int]]  # key, context, continuation: tokens


class HarnessLM(HFLM):
    """A loaded causal LM for the harness.

    The harness's own `HFLM`, except for the log probabilities of continuations: in
    `HFLM` the LM head also predicts the context, which takes up to two fifths of the
    time if the vocabulary is large for the LM.

    Args:
        lm: HF causal LM in eval mode.
        tokenizer: Its tokenizer.
        batch_size: Inputs in a batch; fewer if they are long (`MAX_BATCH_TOKENS`).
    """

    def __init__(self, lm, tokenizer, batch_size: int):
        super().__init__(
            pretrained=lm, tokenizer=tokenizer, backend="causal", batch_size=batch_size
        )

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: Optional[int] = None,
    ) -> List[Tuple[float, bool]]:
        """Score continuations; `HFLM` calls it for every kind of log probability.

        Args:
            requests: Contexts and continuations. Only the end of a context that is too
                long is used.
            disable_tqdm: Report no progress.
            override_bs: Inputs in a batch, instead of `batch_size`.

        Returns:
            For each request the sum of its continuation's log probabilities in nats,
            and whether each of its tokens is the most likely one.

        Raises:
            ValueError: A continuation is empty, or longer than the LM reads.
        """
        # Continuations of one token share their input with other choices of the item.
        answered: Dict[Tuple[int, ...], List[int]] = {}
        for index, (key, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"the text task asks for the probability of {len(continuation)} "
                    f"tokens, expected 1 to {self.max_length}: {str(key)[:200]}"
                )
            tokens = (context + continuation)[-self.max_length - 1 : -1]
            answered.setdefault(tuple(tokens), []).append(index)
        inputs = sorted(answered, key=len, reverse=True)  # little padding
        batches = []
        while inputs:
            fit = max(1, MAX_BATCH_TOKENS // len(inputs[0]))
            size = min(fit, override_bs or self.batch_size)
            batches.append(inputs[:size])
            inputs = inputs[size:]

        scores: Dict[int, Tuple[float, bool]] = {}
        for batch in progress(batches, "task", "batches", disable=disable_tqdm):
            rows = [torch.tensor(tokens) for tokens in batch]
            input_ids_BL = pad_sequence(rows, batch_first=True).to(self.device)
            length = input_ids_BL.shape[1]
            wanted = [max(len(requests[i][2]) for i in answered[row]) for row in batch]
            keep = max(length - len(row) + most for row, most in zip(batch, wanted))
            # Padding is at the end, where causal attention does not see it. Indices,
            # not their number: they make a copy, and a slice uses a slower product.
            logits_BLV = self.model(
                input_ids=input_ids_BL,
                use_cache=False,
                logits_to_keep=torch.arange(length - keep, length),
            ).logits
            for row, most, logits_LV in zip(batch, wanted, logits_BLV):
                stop = keep - (length - len(row))
                # in bfloat16 close choices would be equal
                log_probs_LV = logits_LV[stop - most : stop].float().log_softmax(-1)
                for i in answered[row]:
                    targets_L = torch.tensor(requests[i][2], device=self.device)
                    of_this_LV = log_probs_LV[-len(targets_L) :]
                    log_prob = of_this_LV.gather(1, targets_L[:, None]).sum().item()
                    greedy = torch.equal(of_this_LV.argmax(-1), targets_L)
                    scores[i] = log_prob, greedy
        return [scores[i] for i in range(len(requests))]
