"""What the LLM reads of speech: the units heard."""

import pytest
import torch

from espnet_dus.model.ctc_compression import CTCCompression

RMS = 0.5
# blank, <unk>, and two units with their tokens
UNITS_BS = torch.tensor([[0, 2, 2, 0, 2, 3, 1, 3], [3, 3, 0, 0, 2, 2, 2, 2]])
LENGTHS_B = torch.tensor([8, 4])
RUNS = [[(2, [1, 2]), (2, [4]), (3, [5]), (1, [6]), (3, [7])], [(3, [0, 1])]]


@pytest.fixture
def embeddings():
    torch.manual_seed(0)
    return torch.nn.Embedding(20, 6)


def compress(x_BSD, lengths_B, embeddings, units_BS=UNITS_BS):
    compression = CTCCompression([0, 0, 7, 11], RMS)
    return compression(x_BSD, lengths_B, units_BS, embeddings)


def test_the_llm_reads_each_unit_heard_its_token_and_its_sound(embeddings):
    x_BSD = torch.randn(2, 8, 6)
    read_BND, read_B = compress(x_BSD, LENGTHS_B, embeddings)
    assert read_B.tolist() == [5, 1]
    for b, runs in enumerate(RUNS):
        for n, (unit, places) in enumerate(runs):
            sound = x_BSD[b, places].mean(0)
            sound = sound * RMS / sound.pow(2).mean().sqrt()
            expected = sound  # <unk> is heard, but has no token
            if unit > 1:
                expected = sound + embeddings.weight[{2: 7, 3: 11}[unit]]
            torch.testing.assert_close(read_BND[b, n], expected)


def test_the_sound_has_a_gradient_where_a_unit_was_heard(embeddings):
    x_BSD = torch.randn(2, 8, 6)
    x_BSD[1, :2] = 0.0  # silence has one too, and not an infinite one
    x_BSD.requires_grad_()
    read_BND, _ = compress(x_BSD, LENGTHS_B, embeddings)
    (read_BND[0, :5] * torch.randn(6)).sum().backward()
    heard = [place for _, places in RUNS[0] for place in places]
    assert (x_BSD.grad[0].abs().sum(-1) > 0).nonzero().flatten().tolist() == heard
    assert torch.isfinite(x_BSD.grad).all()


def test_nothing_is_read_where_nothing_was_heard(embeddings):
    blanks_BS = torch.zeros_like(UNITS_BS)
    read_BND, read_B = compress(torch.randn(2, 8, 6), LENGTHS_B, embeddings, blanks_BS)
    assert read_BND.shape == (2, 0, 6) and read_B.tolist() == [0, 0]


# -- in the model ----------------------------------------------------------------------


@pytest.fixture
def make(tiny_model, adaptation_conf, randomise):
    def make(kind="e_branchformer", scope="speech", positions=(-1, -1), **options):
        conf = dict(ctc_compression=True, prompt="Transcript:\n")
        conf.update(options.pop("model_conf", {}))
        model = tiny_model(
            adaptation_conf=adaptation_conf(kind, scope, positions),
            model_conf=conf,
            **options,
        )
        randomise(model.lm, seed=3)
        randomise(model.ctc, seed=4, std=0.3)
        return model.eval()

    return make


@pytest.mark.parametrize("kind", ["e_branchformer", "transformer"])
@torch.no_grad()
def test_the_losses_of_a_batch_are_those_of_its_utterances(make, tiny_batch, kind):
    model, seconds = make(kind), (1.3, 0.9, 0.98)
    _, together, _ = model(**tiny_batch(*seconds))
    batches = [tiny_batch(*seconds, which=[b]) for b in range(3)]
    alone = [model(**batch)[1] for batch in batches]
    for name, length, extra in (
        ("loss_ce", "text_lengths", 1),
        ("acc", "text_lengths", 1),
        ("loss_ctc", "text_ctc_lengths", 0),
    ):
        weights = [int(batch[length]) + extra for batch in batches]
        values = [w * float(stats[name]) for w, stats in zip(weights, alone)]
        expected = sum(values) / sum(weights)
        assert float(together[name]) == pytest.approx(expected, abs=1e-4), name


def test_the_inserted_layers_learn_from_the_cross_entropy_alone_too(make, tiny_batch):
    model = make(model_conf=dict(ctc_weight=0.0))
    model(**tiny_batch(1.3, 0.9))[0].backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    (layer,) = [
        g
        for n, g in grads.items()
        if n.endswith("layers.1.layer.layer.merge_proj.weight")
    ]
    assert layer.abs().sum() > 0


@torch.no_grad()
def test_an_utterance_of_blanks_has_losses_too(make, tiny_batch):
    model = make()
    model.ctc.ctc.ctc_lo.bias[0] = 1e4
    _, stats, _ = model(**tiny_batch(0.6, 0.8))
    assert torch.isfinite(stats["loss_ce"])


@torch.no_grad()
def test_text_meets_the_base_lm_bit_for_bit(make, tiny_lm):
    ids = torch.arange(3, 40)[None]
    assert torch.equal(make().lm(ids).logits, tiny_lm[0](ids).logits)


@pytest.mark.parametrize(
    "scope, positions, ctc_layer",
    [
        ("all", (-1, -1), "inserted:-1"),
        ("speech", (-1, 0), "inserted:-1"),
        ("speech", (-1, -1), "inserted:0"),
        ("speech", (-1, -1), "base:0"),
    ],
)
def test_layers_that_are_not_an_encoder_up_to_the_ctc_head_are_an_error(
    make, scope, positions, ctc_layer
):
    with pytest.raises(ValueError, match="ctc_compression: .*positions -1"):
        make(scope=scope, positions=positions, model_conf=dict(ctc_layer=ctc_layer))


def test_compression_without_a_prompt_is_an_error(make):
    with pytest.raises(ValueError, match="ctc_compression needs a prompt"):
        make(model_conf=dict(prompt=""))


@pytest.mark.parametrize("unit_type", ["bpe", "char"])
def test_units_that_are_not_tokens_are_an_error(make, ctc_units_dirs, unit_type):
    with pytest.raises(ValueError, match=f"units are '{unit_type}', not tokens"):
        make(ctc_units=str(ctc_units_dirs[unit_type]))
