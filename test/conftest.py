"""A base LM small enough to build in a second, shared by the tests."""

import json
import shutil

import pytest

# Files that take minutes, longest first
LONGEST = ("test_mini_an4.py", "test_mini_an4_smollm2.py")


def pytest_collection_modifyitems(items):
    """Start the longest files first, so that several processes end together."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = (
    "HELLO WORLD HOW ARE YOU TODAY the cat sat on the mat and the dog ran after it "
    "one two three four five six seven eight nine ten yes no stop go help rubout "
) * 4


@pytest.fixture(scope="session")
def tiny_base_lm_dir(tmp_path_factory):
    """Directory of a random Llama with a byte-level BPE tokenizer and identity.json."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from espnet_dus.model.base_lm import weights_sha256

    directory = tmp_path_factory.mktemp("tiny_base_lm")

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([CORPUS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS[1:],
    )
    tokenizer.save_pretrained(directory)

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        # wide enough for each layer to matter; at 0.02 attention adds next to nothing
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    identity = {
        "name": "tiny-random-llama",
        "revision": "test",
        "sha256": weights_sha256(directory),
    }
    (directory / "identity.json").write_text(json.dumps(identity))
    return directory


@pytest.fixture
def other_base_lm(tmp_path, tiny_base_lm_dir):
    """A base LM that differs from the tiny one in its weights only."""
    from safetensors.torch import load_file, save_file

    directory = shutil.copytree(tiny_base_lm_dir, tmp_path / "other")
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "identity.json").unlink()
    return directory


@pytest.fixture
def tiny_lm(tiny_base_lm_dir):
    """A fresh copy of the tiny base LM, float32, in eval mode: (model, tokenizer)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_base_lm_dir, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(tiny_base_lm_dir)


# -- up-scaled LMs ---------------------------------------------------------------------

# kind and scope -> options that make its layers tiny
LAYER_CONF = {
    ("transformer", "all"): {},
    ("transformer", "speech"): {},
    ("e_branchformer", "all"): dict(cgmlp_linear_units=32, cgmlp_conv_kernel=5),
    ("e_branchformer", "speech"): dict(
        linear_units=32, cgmlp_linear_units=32, cgmlp_conv_kernel=5, dropout_rate=0.0
    ),
}


@pytest.fixture(params=["transformer", "e_branchformer"])
def kind(request):
    """Each kind of added layer."""
    return request.param


@pytest.fixture(params=LAYER_CONF, ids="-".join)
def kind_and_scope(request):
    """Each kind of added layer in each scope."""
    return request.param


@pytest.fixture(scope="session")
def randomise():
    """Return a function that puts trained parameters into "any training state"."""
    import torch

    def randomise(module, seed=0, std=0.1):
        generator = torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data += std * noise
        return module

    return randomise


@pytest.fixture
def upscaled(tiny_lm, randomise):
    """Return a function that makes an up-scaled copy of the tiny LM, in eval mode.

    With a seed, its inserted layers are in some training state.
    """
    import copy

    import torch

    from espnet_dus.model.upscaling import upscale

    def make(kind, scope, positions=(-1, 1, 1, 2), seed=None, **layer_conf):
        layer_conf = {**LAYER_CONF[kind, scope], **layer_conf}
        lm = copy.deepcopy(tiny_lm[0])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            lm = upscale(lm, kind, scope, positions, **layer_conf)
        return lm.eval() if seed is None else randomise(lm.eval(), seed)

    return make


# -- the whole model -------------------------------------------------------------------

TRANSCRIPTS = ["HELLO WORLD", "HOW ARE YOU TODAY", "YES", "STOP THE DOG"]


@pytest.fixture(scope="session")
def transcripts():
    """The transcripts of the tiny utterances, in their order."""
    return TRANSCRIPTS


@pytest.fixture(scope="session")
def ctc_units_dirs(tmp_path_factory, tiny_base_lm_dir):
    """CTC units of the transcripts, by type."""
    from transformers import AutoTokenizer

    from espnet_dus.data.ctc_units import UNIT_TYPES, CTCUnits

    tokenizer = AutoTokenizer.from_pretrained(tiny_base_lm_dir)
    directories = {t: tmp_path_factory.mktemp("ctc") / t for t in UNIT_TYPES}
    for unit_type, directory in directories.items():
        CTCUnits.make(directory, unit_type, TRANSCRIPTS * 9, tokenizer, nbpe=22)
    return directories


@pytest.fixture(scope="session")
def adaptation_conf():
    """Return a function that makes the options of tiny inserted layers."""

    def make(kind, scope, positions=(0, 2), **conf):
        conf = {**LAYER_CONF[kind, scope], **conf}
        return dict(kind=kind, scope=scope, positions=list(positions), **conf)

    return make


@pytest.fixture(scope="session")
def tiny_options(tiny_base_lm_dir, ctc_units_dirs, adaptation_conf):
    """Return a function that makes the options of a tiny model, as the parser does."""
    from espnet_dus.task import DUSTask

    def make(**options):
        args = DUSTask.get_parser().parse_args([])
        args.base_lm = str(tiny_base_lm_dir)
        args.base_lm_conf = {"dtype": "float32"}
        args.adaptation_conf = adaptation_conf("e_branchformer", "speech")
        args.frontend_conf = dict(
            fs=16000, n_fft=400, hop_length=160, n_mels=20, center=False
        )
        args.speech_embedder_conf = dict(channels=8, dropout_rate=0.0)
        args.ctc_conf = dict(dropout_rate=0.0)
        args.ctc_units = str(ctc_units_dirs["llm"])
        args.model_conf = dict(prompt="Transcript:\n")
        if unknown := set(options) - set(vars(args)):
            raise ValueError(f"no such option(s): {unknown}")
        vars(args).update(options)
        return args

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_options):
    """Return a function that builds a tiny ESPnetDUSModel from options."""
    import torch

    from espnet_dus.task import DUSTask

    def make(**options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return DUSTask.build_model(tiny_options(**options))

    return make


@pytest.fixture(scope="session")
def noises():
    """Return a function that makes white noise (samples,) at 16 kHz per duration."""
    import numpy as np

    def make(*seconds, seed=0):
        generator = np.random.default_rng(seed)
        return [
            (0.1 * generator.standard_normal(round(s * 16000))).astype(np.float32)
            for s in seconds
        ]

    return make


@pytest.fixture(scope="session")
def tiny_batch(tiny_options, noises):
    """Return a function that makes a batch of utterances of some durations.

    `which` picks some of them: the same utterances as in the whole batch.
    """
    from espnet_dus.task import DUSTask

    def make(*seconds, which=None, **options):
        args = tiny_options(**options)
        preprocess = DUSTask.build_preprocess_fn(args, train=True)
        utterances = [
            (f"utt{i}", preprocess(f"utt{i}", {"speech": speech, "text": text}))
            for i, (speech, text) in enumerate(zip(noises(*seconds), TRANSCRIPTS * 9))
        ]
        if which is not None:
            utterances = [utterances[i] for i in which]
        return DUSTask.build_collate_fn(args, train=True)(utterances)[1]

    return make


# -- experiment directories ------------------------------------------------------------


@pytest.fixture
def make_experiment(tmp_path):
    """Return a function that makes an experiment directory as stages 11 to 13 leave it.

    `errors` of `utterances` have one wrong word of three; `delta` is that of the task
    piqa or, without tasks, that of the perplexity.
    """
    from espnet_dus.evaluation.scoring import score_dir

    def make(
        name,
        adaptation="dus",
        sha256="e" * 64,
        utterances=4,
        errors=1,
        identical_tokens=0,
        tasks=True,
        delta=None,
        limit=None,
    ):
        exp_dir = tmp_path / "exp" / name
        decoding = exp_dir / "decode_a" / "test"
        decoding.mkdir(parents=True)
        (exp_dir / "config.yaml").write_text(f"adaptation: {adaptation}\n")
        base_lm = {"name": "tiny", "revision": "", "sha256": sha256}
        params = {"trained": 30, "frozen": 90, "total": 120, "base_lm": base_lm}
        (exp_dir / "params.json").write_text(json.dumps(params))

        data = tmp_path / "dump" / name
        data.mkdir(parents=True)
        utts = [f"utt{i}" for i in range(utterances)]
        hyps = ["a b x" if i < errors else "a b c" for i in range(utterances)]
        (data / "text").write_text("".join(f"{utt} a b c\n" for utt in utts))
        (data / "utt2spk").write_text("".join(f"{utt} spk\n" for utt in utts))
        (decoding / "text").write_text("".join(map("{} {}\n".format, utts, hyps)))
        score_dir(data / "text", decoding)
        for job, (count, audio, seconds) in enumerate(
            ((2, 30.0, 5.0), (utterances - 2, 10.0, 3.0)), 1
        ):
            report = dict(utterances=count, audio_seconds=audio, seconds=seconds)
            path = decoding / "logdir" / f"output.{job}" / "decode.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(report))
        training = {
            "epochs": 2,
            "seconds_per_step": 1.75,
            "wall_seconds": 7200.0,
            "peak_memory_bytes": 3 * 10**9,
            "peak_memory_of": "process",
        }
        (exp_dir / "training.json").write_text(json.dumps(training))

        def compared(base, change, error):
            if identical_tokens:
                change = error = 0.0
            return {
                "base": base,
                "adapted": base + change,
                "delta": change,
                "standard_error": error,
            }

        accuracy = compared(0.5, -0.02 if delta is None else delta, 0.01)
        change = 1.0 if tasks or delta is None else delta
        perplexity = {
            "items": 9,
            "metrics": {"token_perplexity": compared(20.0, change, 0.25)},
        }
        if not identical_tokens:
            perplexity["kl_per_token"] = 0.125
        results = {
            "base": base_lm,
            "identical_tokens": identical_tokens,
            "dtype": "float32",
            "limit": limit,
            "window": 1024,
            "texts": {"wiki": perplexity},
            "tasks": {},
            "mean_delta": None,
        }
        if tasks:
            metrics = {"acc,none": accuracy, "acc_norm,none": accuracy}
            results["tasks"] = {"piqa": {"items": 50, "metrics": metrics}}
            results["mean_delta"] = {
                "delta": accuracy["delta"],
                "standard_error": accuracy["standard_error"],
                "metrics": {"piqa": "acc_norm,none"},
            }
        (exp_dir / "text_eval").mkdir()
        (exp_dir / "text_eval" / "results.json").write_text(json.dumps(results))
        return exp_dir

    return make


@pytest.fixture(scope="session")
def whisper_dir(tmp_path_factory):
    """A Whisper of one layer in CTranslate2's format."""
    converter = pytest.importorskip("ctranslate2.converters.transformers")
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = WhisperForConditionalGeneration(config).eval()
    spec = converter.WhisperLoader().get_model_spec(model)
    spec.config.suppress_ids = spec.config.suppress_ids_begin = []
    spec.config.lang_ids, spec.config.alignment_heads = [], [[0, 0]]
    spec.register_vocabulary([f"<{n}>" for n in range(100)])
    spec.validate()
    directory = tmp_path_factory.mktemp("whisper")
    spec.save(directory)
    return directory
