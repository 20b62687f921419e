"""Up-scaling on bases that are not Llama: it keeps its promises, or refuses clearly."""

import copy

import pytest
import torch
import transformers

from espnet_dus.model.adaptation import adapt
from espnet_dus.model.base_lm import embedding_rms
from espnet_dus.model.packing import pack, use_packed_attention
from espnet_dus.model.sequence import join
from espnet_dus.model.speech_embedder import SpeechEmbedder
from espnet_dus.model.token_embedder import TokenEmbedder
from espnet_dus.model.upscaling import inserted_layers, upscale

SIZES = dict(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    initializer_range=0.1,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)
# name -> (model type, what it has beside SIZES)
WORK = {
    "llama": ("Llama", dict(tie_word_embeddings=False)),
    "mistral": ("Mistral", dict(sliding_window=None)),
    "mistral-windowed": ("Mistral", dict(sliding_window=6)),  # shorter than the inputs
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", dict(tie_word_embeddings=True)),
    "gemma": ("Gemma", {}),  # the first: it scales what it embeds
}
# Some layers of these see a window only, so that their place in the stack counts.
REFUSED = {
    "qwen2-windowed": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=6, max_window_layers=1),
    ),
    "gemma2": ("Gemma2", {}),
    "gemma3": (
        "Gemma3",
        {"layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    ),
}


def build(model_type, options):
    name = (
        f"{model_type}TextConfig" if model_type == "Gemma3" else f"{model_type}Config"
    )
    config = getattr(transformers, name)(**{**SIZES, **options})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, f"{model_type}ForCausalLM")(config).eval()


@pytest.fixture(params=WORK)
def base(request):
    """A tiny random causal LM of each type that can be up-scaled."""
    return build(*WORK[request.param])


@pytest.fixture
def make(base, randomise, kind_and_scope):
    """Return a function that up-scales a copy of the base by each kind and scope."""
    kind, scope = kind_and_scope
    conf = {}
    if kind == "e_branchformer":
        conf = dict(cgmlp_linear_units=32, cgmlp_conv_kernel=5)
    if (kind, scope) == ("e_branchformer", "speech"):
        conf["linear_units"] = 32

    def make(trained, positions=(-1, 1, 1, 2)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            lm = upscale(copy.deepcopy(base), kind, scope, positions, **conf).eval()
        return randomise(lm) if trained else lm

    return make


@pytest.fixture
def ids():
    return torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def spoken():
    """Two sequences padded at the left: embeddings, attention mask, speech mask."""
    inputs = torch.randn(2, 12, 64, generator=torch.Generator().manual_seed(2))
    place = torch.arange(12)[None] - torch.tensor([[0], [4]])
    return inputs, (place >= 0).long(), (place >= 0) & (place < 7)


@torch.no_grad()
def test_the_scale_of_embeddings_is_that_of_what_the_base_reads(base):
    read = base.get_input_embeddings()(torch.arange(base.config.vocab_size))
    assert embedding_rms(base) == pytest.approx(float(read.pow(2).mean().sqrt()))


@pytest.fixture
def speech_inputs(base):
    """Speech embeddings (2, 9, D) of features and of tokens, lengths 9 and 5."""
    lengths = torch.tensor([9, 5])
    generator = torch.Generator().manual_seed(3)
    features = SpeechEmbedder(20, 64, embedding_rms(base), "conv2d", channels=8).eval()
    tokens = TokenEmbedder((50, 20), 64).eval()
    tokens.start_at_embeddings(base.get_input_embeddings())
    with torch.no_grad():
        return {
            "features": features(
                torch.randn(2, 40, 20, generator=generator), 4 * lengths + 3
            ),
            "tokens": tokens(
                torch.randint(0, 20, (2, 9, 2), generator=generator), lengths
            ),
        }


@pytest.mark.parametrize(
    "positions", ["interleaved:2", "bottom", "middle", "top", "sandwich:2", (-1, 1, 1)]
)
@torch.no_grad()
def test_untrained_layers_leave_the_logits_of_the_base(
    base, make, ids, speech_inputs, positions
):
    lm = make(trained=False, positions=positions)
    assert len(lm.model.layers) == lm.config.num_hidden_layers > 3
    assert torch.equal(lm(input_ids=ids).logits, base(input_ids=ids).logits)
    text_BND = base.get_input_embeddings()(ids[:, :6])
    for speech_BSD, lengths_B in speech_inputs.values():
        seq = join(speech_BSD, lengths_B, text_BND, torch.tensor([6, 4]), "left")
        inputs = dict(
            inputs_embeds=seq.inputs_BTD, attention_mask=seq.attention_mask_BT
        )
        ours = lm(**inputs, speech_mask=seq.speech_mask_BT).logits
        real_BT = seq.attention_mask_BT.bool()
        assert torch.equal(ours[real_BT], base(**inputs).logits[real_BT])


@torch.no_grad()
def test_cached_generation_is_that_of_the_whole_forward(make, spoken):
    lm = make(trained=True)
    inputs, attention, speech = spoken
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)

    def generate(use_cache):
        return lm.generate(
            inputs_embeds=inputs,
            attention_mask=attention,
            speech_mask=speech,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )

    cached, whole = generate(True), generate(False)
    assert cached.sequences.shape == (2, 6)
    torch.testing.assert_close(
        torch.stack(cached.logits), torch.stack(whole.logits), rtol=1e-3, atol=1e-4
    )


def test_a_step_moves_the_inserted_layers_and_nothing_else(base, make, spoken):
    lm = make(trained=False)
    inputs, attention, speech = spoken
    before = copy.deepcopy(lm.state_dict())
    trained = [p for p in lm.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    logits = lm(
        inputs_embeds=inputs, attention_mask=attention, speech_mask=speech
    ).logits
    logits.logsumexp(-1).sum().backward()
    optimizer.step()
    moved = {n for n, value in lm.state_dict().items() if not value.equal(before[n])}
    ours = [f"model.layers.{place}." for place in inserted_layers(lm)]
    for prefix in ours:
        assert any(name.startswith(prefix) for name in moved), prefix
    assert all(name.startswith(tuple(ours)) for name in moved)


def test_the_transformer_kind_is_an_ordinary_deeper_model(
    base, ids, randomise, tmp_path
):
    lm = randomise(upscale(base, "transformer", "all", "interleaved:3").eval())
    lm.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(loaded.model.layers) == 6
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, lm(ids).logits)


@pytest.mark.parametrize("name", REFUSED)
def test_layers_of_more_than_one_attention_are_refused(name):
    with pytest.raises(ValueError, match="ForCausalLM has layers .*sliding_attention"):
        adapt(build(*REFUSED[name]), "dus")


@torch.no_grad()
def test_utterances_of_a_packed_row_are_kept_apart(base):
    generator = torch.Generator().manual_seed(0)
    speech = torch.randn(2, 5, 64, generator=generator), torch.tensor([5, 3])
    text = torch.randn(2, 9, 64, generator=generator), torch.tensor([2, 9])
    seq = join(*speech, *text, "right")
    expected = base.model(inputs_embeds=seq.inputs_BTD).last_hidden_state
    if getattr(base.config, "sliding_window", None) is not None:
        with pytest.raises(ValueError, match="packing: .* a window of 6 positions"):
            use_packed_attention(base)
        return
    use_packed_attention(base)
    row = pack(seq)
    hidden = base.model(inputs_embeds=row.inputs_BTD, **row.packing).last_hidden_state
    for b, ours in enumerate(hidden[0, :19].split([7, 12])):
        torch.testing.assert_close(ours, expected[b, : len(ours)])
