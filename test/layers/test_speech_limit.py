"""Speech at the scale of the token embeddings, text as it is."""

import pytest
import torch

TIMES = 2.0


@pytest.fixture
def entry(upscaled):
    """Give a function: an up-scaled LM, and what enters its first base layer."""

    def make(scope="speech", max_speech_rms=TIMES):
        positions = (-1, 1)
        lm = upscaled("e_branchformer", scope, positions, max_speech_rms=max_speech_rms)
        seen = {}
        lm.model.layers[1].input_layernorm.register_forward_pre_hook(
            lambda module, args: seen.update(x=args[0])
        )
        return lm, seen

    return make


def rms(x):
    return x.float().pow(2).mean(-1).sqrt()


def inputs(lm, scale):
    """Two sequences of speech and text, the speech `scale` times a token's length."""
    generator = torch.Generator().manual_seed(0)
    table = lm.get_input_embeddings().weight.detach()
    x = table[torch.randint(3, 60, (2, 7), generator=generator)].clone()
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, :4] = mask[1, :3] = True
    x[mask] *= scale
    return x, mask


@pytest.mark.parametrize("scope", ["speech", "all"])
@torch.no_grad()
def test_long_vectors_of_speech_are_shortened_and_nothing_else(entry, scope):
    lm, seen = entry(scope)
    x, mask = inputs(lm, scale=30.0)
    lm(inputs_embeds=x, speech_mask=mask)
    entered, table = seen["x"], lm.get_input_embeddings().weight
    limit = TIMES * rms(table.flatten())
    torch.testing.assert_close(rms(entered[mask]), limit.expand(int(mask.sum())))
    cosine = torch.nn.functional.cosine_similarity(entered[mask], x[mask], dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    assert torch.equal(entered[~mask], x[~mask])


@torch.no_grad()
def test_vectors_at_the_scale_of_tokens_pass_bit_for_bit(entry):
    limited, plain = entry()[0], entry(max_speech_rms=None)[0]
    x, mask = inputs(limited, scale=1.0)
    ours, theirs = (lm(inputs_embeds=x, speech_mask=mask) for lm in (limited, plain))
    assert torch.equal(ours.logits, theirs.logits)


def test_silence_of_zeros_has_a_gradient(entry):
    lm, _ = entry()
    x, mask = inputs(lm, scale=30.0)
    x[0, 1] = 0.0
    x.requires_grad_()
    lm(inputs_embeds=x, speech_mask=mask).logits.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_limit_that_leaves_nothing_is_an_error(entry):
    with pytest.raises(ValueError, match="max_speech_rms: 0 is not above 0"):
        entry(max_speech_rms=0)
