"""Parameters of the paper's models, as it counts them and as ours are.

The paper keeps an input table and an LM head of their own for 49,152 text tokens and
13,448 speech tokens and counts both as trained. Here the LM head stays the base LM's
(tied, frozen, without speech rows), and only the rows of the speech tokens are trained.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from scaling import BASE_LMS
from transformers import LlamaConfig, LlamaForCausalLM

from espnet_dus.model.adaptation import adapt
from espnet_dus.model.checkpoint import count_as_paper, parameter_counts
from espnet_dus.model.token_embedder import TokenEmbedder

TEXT_ROWS = 49152
# OpusLM: special tokens, XEUS k-means and eight streams of the ESPnet codec
SPEECH_ROWS = [256, 5000] + [1024] * 8
HYBRID = {"kind": "e_branchformer"}
COPIES = {"kind": "transformer"}


@pytest.fixture(scope="module")
def bases():
    """SmolLM2-360M and -1.7B, shapes without memory."""
    with torch.device("meta"):
        return {
            size: LlamaForCausalLM(
                LlamaConfig(vocab_size=TEXT_ROWS, tie_word_embeddings=True, **sizes)
            )
            for size, sizes in BASE_LMS.items()
        }


def billions(number):
    return round(number / 1e9, 3)


@pytest.mark.parametrize(
    "size, conf, trained, total, ours",
    [
        ("360m", COPIES, 0.199, 0.513, 0.092),
        ("1.7b", COPIES, 0.659, 2.270, 0.430),
        ("360m", HYBRID, 0.225, 0.540, 0.118),
        ("1.7b", HYBRID, 0.748, 2.358, 0.519),
    ],
)
@pytest.mark.parametrize("placement", ["interleaved", "sandwich", "top", "bottom"])
def test_trained_and_total_parameters(
    bases, size, conf, placement, trained, total, ours
):
    lm = adapt(copy.deepcopy(bases[size]), "dus", positions=placement, **conf)
    hidden = lm.config.hidden_size
    with torch.device("meta"):
        embedder = TokenEmbedder(SPEECH_ROWS, hidden, num_time_mask=0)
    counts = parameter_counts(lm)
    assert billions(counts["trained"] + parameter_counts(embedder)["trained"]) == ours
    model = SimpleNamespace(lm=lm, speech_embedder=embedder)
    assert billions(count_as_paper(model)) == trained
    rows = 2 * (TEXT_ROWS + sum(SPEECH_ROWS)) * hidden
    assert billions(counts["total"] - TEXT_ROWS * hidden + rows) == total


def test_full_fine_tuning_trains_everything(bases):
    with torch.device("meta"):
        embedder = TokenEmbedder(SPEECH_ROWS, 2048, num_time_mask=0)
    lm = adapt(copy.deepcopy(bases["1.7b"]), "full")
    model = SimpleNamespace(lm=lm, speech_embedder=embedder)
    assert billions(count_as_paper(model)) == 1.867


def test_the_paper_s_count_is_of_speech_tokens_only(tiny_model):
    assert count_as_paper(tiny_model()) is None
