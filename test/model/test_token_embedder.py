"""The token embedder: vocabulary expansion for discrete speech tokens."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.model.token_embedder import TokenEmbedder

SIZES = (5, 3)
TOKENS = torch.tensor([[[0, 2], [4, 0], [1, 1]], [[3, 1], [-1, -1], [-1, -1]]])
LENGTHS = torch.tensor([3, 1])


def embedder(sizes=SIZES, **options):
    torch.manual_seed(0)
    return TokenEmbedder(sizes, 8, **options)


@torch.no_grad()
def test_a_frame_is_the_sum_of_its_streams_rows():
    model = embedder().eval()
    x_BSD, lengths_B = model(TOKENS, LENGTHS)
    row = model.table.weight
    assert row.shape == (8, 8) and lengths_B.tolist() == [3, 1]
    expected = torch.stack([row[0] + row[5 + 2], row[4] + row[5], row[1] + row[5 + 1]])
    torch.testing.assert_close(x_BSD[0], expected)
    torch.testing.assert_close(x_BSD[1, 0], row[3] + row[5 + 1])


def test_each_token_trains_its_own_rows():
    model = embedder().eval()
    model(TOKENS[1:], LENGTHS[1:])[0].sum().backward()
    assert model.table.weight.grad.any(1).nonzero().flatten().tolist() == [3, 6]


@pytest.mark.parametrize("sizes", [(4000,), (2000, 3000, 1000)])
@torch.no_grad()
def test_frames_start_at_the_mean_and_spread_of_the_text_embeddings(sizes):
    text = torch.nn.Embedding(500, 8)
    text.weight.mul_(torch.arange(1.0, 9.0)).add_(torch.linspace(-2, 2, 8))
    model = embedder(sizes).eval()
    model.start_at_embeddings(text)
    tokens = torch.stack([torch.randint(size, (1, 5000)) for size in sizes], dim=-1)
    frames_SD = model(tokens, torch.tensor([5000]))[0][0]
    std_D = text.weight.std(0)
    assert (frames_SD.std(0) / std_D).sub(1).abs().max() < 0.1
    assert ((frames_SD.mean(0) - text.weight.mean(0)) / std_D).abs().max() < 0.1
    torch.testing.assert_close(model.mask_row, text.weight.mean(0))


def test_masking_replaces_whole_frames_by_a_trained_row_in_training_only():
    model = embedder(num_time_mask=2, time_mask_width_ratio_range=[0.1, 0.2])
    torch.nn.init.constant_(model.mask_row, 9.0)
    tokens, lengths = torch.zeros(4, 50, 2, dtype=torch.long), torch.tensor([50] * 4)
    x_BSD, _ = model(tokens, lengths)
    masked_BS = (x_BSD == 9.0).all(-1)
    assert torch.equal(masked_BS, (x_BSD == 9.0).any(-1))
    # two masks of 5 to 9 frames, which may overlap
    assert all(5 <= n <= 18 for n in masked_BS.sum(1).tolist())
    x_BSD.sum().backward()
    assert torch.equal(model.mask_row.grad, torch.full((8,), masked_BS.sum().float()))
    assert not (model.eval()(tokens, lengths)[0] == 9.0).any()


def test_without_masks_there_is_no_mask_row_that_ddp_would_wait_for():
    names = [name for name, _ in embedder(num_time_mask=0).named_parameters()]
    assert names == ["table.weight"]


@pytest.mark.parametrize(
    "tokens, message",
    [
        (
            [[5, 0]],
            r"token 5 \(utterance 0 .*frame 0, stream 0\).* 0 to 4\. .*tokenizer",
        ),
        ([[0, 0], [2, 3]], r"token 3 \(utterance 0 .*frame 1, stream 1\).* 0 to 2"),
        ([[0, -1]], "token -1 "),
        ([[0]], r"shape \(1, 1, 1\): expected .* 2 streams"),
    ],
)
def test_what_is_not_in_the_table_is_an_error_that_names_it(tokens, message):
    with pytest.raises(ValueError, match=message):
        embedder()(torch.tensor([tokens]), torch.tensor([len(tokens)]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_time_mask": -1}, "num_time_mask: -1 is below 0"),
        ({"time_mask_width_ratio_range": [0.2, 0.1]}, r"ratio_range: \[0.2, 0.1\]"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error_that_names_it(options, message):
    with pytest.raises(ValueError, match=message):
        embedder(**options)


# -- in the whole model ----------------------------------------------------------------


def tokenizer(directory, name="clusters", sizes=SIZES):
    TokenizerInfo(name, {"encoder": "log-mel"}, 50.0, 16000, sizes).write(directory)
    return str(directory)


@pytest.fixture
def make(tiny_model, tmp_path):
    """Return a function that builds a tiny model of speech tokens."""

    def make(directory=None, **options):
        return tiny_model(
            **{
                "speech_input": "tokens",
                "speech_tokenizer": directory or tokenizer(tmp_path / "tokenizer"),
                "speech_embedder_conf": {},
                "frontend_conf": {},
                **options,
            }
        )

    return make


def batch():
    text = torch.tensor([[40, 50, 60], [70, 80, -1]])
    return dict(
        speech=TOKENS.int(),
        speech_lengths=LENGTHS,
        text=text,
        text_lengths=torch.tensor([3, 2]),
    )


def test_training_leaves_every_weight_of_the_base_lm(
    make, adaptation_conf, kind_and_scope, tiny_base_lm_dir
):
    model = make(
        adaptation_conf=adaptation_conf(*kind_and_scope),
        model_conf={"ctc_weight": 0.0},
        ctc_units=None,
    ).train()
    assert model.frontend is None and model.normalize is None
    start = copy.deepcopy(model.speech_embedder.state_dict())
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2
    )
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**batch())[0]
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.5
    assert not torch.equal(model.speech_embedder.table.weight, start["table.weight"])
    # by name, text embeddings (tied to the LM head) included
    base = load_file(f"{tiny_base_lm_dir}/model.safetensors")
    own = {id(p): p for n, p in model.lm.named_parameters() if not p.requires_grad}
    assert len(own) == len(base)
    values = list(own.values())
    for name, expected in base.items():
        assert any(
            v.shape == expected.shape and v.equal(expected) for v in values
        ), name
    assert model.lm.lm_head.weight.equal(base["model.embed_tokens.weight"])


def test_an_untrained_model_predicts_what_the_base_lm_does(make, tiny_lm):
    model = make().eval()
    speech_BSD, lengths_B = model.embed_speech(TOKENS[:1], LENGTHS[:1])
    mask = torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        ours = model.lm(inputs_embeds=speech_BSD, speech_mask=mask).logits
        theirs = tiny_lm[0](inputs_embeds=speech_BSD).logits
    assert torch.equal(ours, theirs) and lengths_B.tolist() == [3]


def test_a_checkpoint_of_another_tokenizer_is_refused_by_name(make, tmp_path):
    state = make().state_dict()
    make().load_state_dict(state)
    other = make(tokenizer(tmp_path / "other", "codec"))
    with pytest.raises(RuntimeError, match="tokenizer clusters .* at hand is codec"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"speech_tokenizer": None}, "speech_input: tokens needs .*--speech_tokenizer"),
        ({"input_size": 80}, "input_size: 80"),
        ({"specaug": "specaug"}, "specaug: specaug is for features; .*num_time_mask"),
        (
            {"speech_embedder_conf": {"channels": 8}},
            "unknown option.*channels; .*num_time",
        ),
    ],
)
def test_options_of_features_are_an_error_that_names_them(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
