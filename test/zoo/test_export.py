"""Exported models: what they are, and that they compute what was trained."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    LlamaForCausalLM,
    pipeline,
)

from espnet_dus.app import cli
from espnet_dus.data.speech_tokens.info import TokenizerInfo, read_tokenizer
from espnet_dus.data.speech_tokens.kmeans import make_tokenizer
from espnet_dus.zoo.export import _save_whole, export

IDS = torch.arange(3, 40)[None]


@pytest.fixture
def trained(tiny_options, tiny_model, adaptation_conf, randomise, tmp_path):
    """Return a function that makes a trained model: the model, and its two files."""

    def make(
        arm="dus",
        kind=None,
        scope=None,
        prompt_tuning=False,
        compressed=False,
        **options,
    ):
        conf = {"lora": {"rank": 2}}.get(arm, {})
        if kind is not None:
            positions = (-1, -1) if compressed else (-1, 0, 2)
            conf = adaptation_conf(kind, scope, positions)
        options.update(adaptation=arm, adaptation_conf=conf)
        options["model_conf"] = {
            "ctc_layer": "inserted:-1" if compressed else "base:0",
            "ctc_compression": compressed,
            "prompt": "Transcript:\n",
            "prompt_tuning": prompt_tuning,
        }
        model = randomise(tiny_model(**options), seed=1).eval()
        config, checkpoint = tmp_path / "config.yaml", tmp_path / "1epoch.pth"
        config.write_text(yaml.safe_dump(vars(tiny_options(**options))))
        torch.save(model.state_dict(), checkpoint)
        return SimpleNamespace(model=model, files=(config, checkpoint))

    return make


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def names(directory):
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize(
    "arm, kind, scope", [("dus", "transformer", "all"), ("full", None, None)]
)
@torch.no_grad()
def test_a_model_of_plain_layers_is_a_plain_llama(trained, tmp_path, arm, kind, scope):
    trained = trained(arm, kind, scope)
    out = tmp_path / "exported"
    assert export(*trained.files, out) == "model"
    lm = AutoModelForCausalLM.from_pretrained(out).eval()
    assert type(lm) is LlamaForCausalLM
    assert len(lm.model.layers) == lm.config.num_hidden_layers
    assert lm.config.num_hidden_layers == (6 if arm == "dus" else 3)
    close(lm(IDS).logits, trained.model.lm(IDS).logits)
    weights = load_file(out / "model.safetensors")
    expected = trained.model.lm.state_dict()
    assert weights.keys() | {"lm_head.weight"} == expected.keys()  # which is tied
    for name, value in weights.items():
        assert torch.equal(value, expected[name]), name
    assert not [n for n in names(out) if n.endswith((".bin", ".pth", ".pt"))]
    assert "depth_up_scaling" not in json.loads((out / "config.json").read_text())


@torch.no_grad()
def test_a_plain_llama_needs_nothing_of_this_package(trained, tmp_path):
    trained = trained("dus", "transformer", "all")
    export(*trained.files, tmp_path / "exported")
    torch.save(trained.model.lm(IDS).logits, tmp_path / "logits.pt")
    code = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
assert AutoTokenizer.from_pretrained("exported")("the cat").input_ids
lm = AutoModelForCausalLM.from_pretrained("exported").eval()
logits = lm(torch.arange(3, 40)[None]).logits
torch.testing.assert_close(logits, torch.load("logits.pt"), rtol=1e-4, atol=1e-4)
assert not any(name.split(".")[0] == "espnet_dus" for name in sys.modules)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@torch.no_grad()
def test_lora_is_a_peft_adapter(trained, tmp_path, tiny_base_lm_dir):
    from peft import PeftModel

    trained = trained("lora")
    out = tmp_path / "exported"
    assert export(*trained.files, out) == "adapter"
    base = AutoModelForCausalLM.from_pretrained(tiny_base_lm_dir, dtype=torch.float32)
    before = base(IDS).logits
    lm = PeftModel.from_pretrained(base, out).eval()
    expected = trained.model.lm(IDS).logits
    close(lm(IDS).logits, expected)
    assert not torch.allclose(before, expected, atol=0.1)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-random-llama"
    assert (config["r"], config["peft_type"]) == (2, "LORA")


@pytest.fixture(scope="module")
def auto():
    """The Auto classes, once ours are registered with them."""
    import espnet_dus.hf  # noqa: F401

    def load(directory, **kwargs):
        model = AutoModelForCausalLM.from_pretrained(directory, **kwargs)
        return model.eval(), AutoProcessor.from_pretrained(directory)

    return load


WHOLE = [
    ("dus", "e_branchformer", "speech"),
    ("dus", "e_branchformer", "all"),
    ("dus", "transformer", "speech"),
    ("frozen", None, None),
]


@pytest.mark.parametrize("arm, kind, scope", WHOLE)
@torch.no_grad()
def test_other_models_come_back_whole_by_the_auto_classes(
    trained, tmp_path, auto, noises, arm, kind, scope
):
    from espnet_dus.search.speech2text import Speech2Text

    trained = trained(arm, kind, scope, prompt_tuning=scope != "all")
    out = tmp_path / "exported"
    assert export(*trained.files, out) == "espnet_dus"
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names(out)
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "espnet_dus" and "auto_map" not in config

    model, processor = auto(out)
    for part in ("lm", "speech_embedder"):
        expected = getattr(trained.model, part).state_dict()
        for name, value in getattr(model, part).state_dict().items():
            assert torch.equal(value, expected.pop(name)), name
        assert not expected
    close(model(IDS, added_layers="kept").logits, trained.model.lm(IDS).logits)
    speech = noises(0.6, 0.9)
    ids = model.generate(**processor(speech), max_new_tokens=5)
    speech2text = Speech2Text(*trained.files)
    for ours, theirs in zip(ids.tolist(), speech2text(speech)):
        assert ours[: len(theirs.token_int[:5])] == theirs.token_int[:5]
    # a batch, and one alone
    alone = model.generate(**processor(speech[1]), max_new_tokens=5)
    assert alone.tolist()[0] == ids.tolist()[1][: alone.size(1)]
    # text behind the speech: the logits of training
    inputs = processor(speech)
    logits = model(**inputs).logits
    lengths = torch.tensor([len(s) for s in speech])
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(s) for s in speech], batch_first=True
    )
    embedded = trained.model.embed_speech(padded, lengths)
    none = torch.zeros((2, 0), dtype=torch.long)
    seq = trained.model.join_text(*embedded, none, torch.zeros(2, dtype=torch.long))
    hidden = trained.model.upper(trained.model.lower(seq), seq)
    expected = trained.model.lm.lm_head(hidden)
    for i, length in enumerate(seq.lengths_B):
        close(logits[i, :length], expected[i, :length])


@torch.no_grad()
def test_a_model_with_ctc_compression_hears_the_same_units(
    trained, tmp_path, auto, noises
):
    from espnet_dus.search.speech2text import Speech2Text

    trained = trained("dus", "e_branchformer", "speech", compressed=True)
    assert export(*trained.files, tmp_path / "exported") == "espnet_dus"
    model, processor = auto(tmp_path / "exported")
    speech = noises(0.6, 0.9)
    ids = model.generate(**processor(speech), max_new_tokens=5)
    heard = set()
    for ours, speech, theirs in zip(
        ids.tolist(), speech, Speech2Text(*trained.files)(speech)
    ):
        assert ours[: len(theirs.token_int[:5])] == theirs.token_int[:5]
        inputs = processor(speech)
        frames = inputs["input_features"], inputs["attention_mask"].sum(1)
        alone = trained.model.speech_embedder(*frames)
        expected = trained.model.encode(*alone)
        encoded = model.encode(*model.speech_embedder(*frames))
        close(encoded.read_BRD, expected.read_BRD)
        heard.add(int(encoded.read_B))
    assert heard != {0}


@pytest.mark.parametrize("normalize", ["global_mvn", "utterance_mvn", None])
@torch.no_grad()
def test_the_processor_extracts_the_features_of_training(
    trained, tmp_path, auto, noises, normalize
):
    conf = {}
    if normalize == "global_mvn":
        feats = np.random.default_rng(0).standard_normal((50, 20))
        stats = dict(count=50, sum=feats.sum(0), sum_square=(feats**2).sum(0))
        np.savez(tmp_path / "stats.npz", **stats)
        conf = {"stats_file": str(tmp_path / "stats.npz")}
    trained = trained("frozen", normalize=normalize, normalize_conf=conf)
    export(*trained.files, tmp_path / "exported")
    model, processor = auto(tmp_path / "exported")
    assert (
        str(tmp_path) not in (tmp_path / "exported/processor_config.json").read_text()
    )
    speech = noises(0.6, 0.9)
    inputs = processor(speech)
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(s) for s in speech], batch_first=True
    )
    lengths = torch.tensor([len(s) for s in speech])
    expected, lengths = trained.model.embed_speech(padded, lengths)
    ours, our_lengths = model.speech_embedder(
        inputs["input_features"], inputs["attention_mask"].sum(1)
    )
    close(ours, expected)
    assert torch.equal(our_lengths, lengths)
    assert processor.decode(model.config.prompt_ids) == "Transcript:\n"


@torch.no_grad()
def test_half_the_space_is_bfloat16(trained, tmp_path, auto):
    trained = trained("dus", "e_branchformer", "speech")
    out = tmp_path / "exported"
    options = ["--asr_train_config", trained.files[0], "--asr_model_file"]
    options += [trained.files[1], "--out_dir", out, "--dtype", "bfloat16"]
    cli.main(["export", *map(str, options)])
    model, _ = auto(out, dtype=torch.float32)
    expected = trained.model.lm.state_dict()
    for name, value in model.lm.state_dict().items():
        assert torch.equal(value, expected[name].bfloat16().float()), name
    auto(out, dtype=torch.bfloat16)[0](IDS)


def test_a_directory_that_is_there_is_not_written_to(tmp_path):
    with pytest.raises(ValueError, match="exists: choose another"):
        export("config.yaml", "x.pth", tmp_path)
    with pytest.raises(ValueError, match="dtype: 'int8' is not one of float32"):
        export("config.yaml", "x.pth", tmp_path / "x", dtype="int8")


def test_a_frontend_that_the_export_does_not_have_is_refused(tmp_path):
    args = SimpleNamespace(frontend="s3prl")
    with pytest.raises(ValueError, match="frontend: s3prl: only models of the default"):
        _save_whole(None, args, tmp_path, torch.float32)


# -- generation ------------------------------------------------------------------------


@torch.no_grad()
def test_a_transcript_is_generated_to_the_end_of_the_speech(
    trained, tmp_path, auto, noises
):
    from espnet_dus.search.speech2text import Speech2Text

    trained = trained("dus", "transformer", "speech")
    export(*trained.files, tmp_path / "exported")
    model, processor = auto(tmp_path / "exported")
    speech = noises(2.4, 0.9)
    inputs = processor(speech)
    search = dict(repetition=0, no_speech=0.0)
    found = Speech2Text(*trained.files, search=search)(speech)
    assert len(found[0].token_int) > 20  # Hugging Face's own default
    for ours, theirs in zip(model.generate(**inputs).tolist(), found):
        assert ours[: len(theirs.token_int)] == theirs.token_int
    assert model.generate(**inputs, max_new_tokens=3).size(1) <= 3
    # a list of floats is one utterance
    assert torch.equal(
        model.generate(**processor(speech[0].tolist())),
        model.generate(**processor(speech[0])),
    )


@pytest.fixture
def two_ends(tmp_path, tiny_base_lm_dir):
    """A base LM that ends its text at either of two tokens, and repeats no bigram."""
    from transformers import GenerationConfig

    directory = shutil.copytree(tiny_base_lm_dir, tmp_path / "two_ends")
    GenerationConfig(eos_token_id=[11, 2], no_repeat_ngram_size=2).save_pretrained(
        directory
    )
    return directory


@pytest.mark.parametrize("kind, what", [("transformer", "model"), (None, "espnet_dus")])
@torch.no_grad()
def test_the_base_lms_generation_settings_are_kept(
    trained, tmp_path, auto, two_ends, kind, what
):
    arm = ("dus", kind, "all") if kind else ("frozen",)
    trained = trained(*arm, base_lm=str(two_ends))
    assert trained.model.lm.generation_config.no_repeat_ngram_size is None
    out = tmp_path / "exported"
    assert export(*trained.files, out) == what
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.generation_config.eos_token_id == [11, 2]
    assert model.generation_config.no_repeat_ngram_size == 2
    if what == "espnet_dus":
        base = AutoModelForCausalLM.from_pretrained(two_ends, dtype=torch.float32)
        theirs = base.generate(IDS, max_new_tokens=12, pad_token_id=2)
        assert torch.equal(model.generate(IDS, max_new_tokens=12), theirs)


@torch.no_grad()
def test_text_alone_is_the_base_lms_unless_the_layers_are_kept(
    trained, tmp_path, auto, tiny_lm
):
    trained = trained("dus", "e_branchformer", "all")
    export(*trained.files, tmp_path / "exported")
    model, _ = auto(tmp_path / "exported")
    options = dict(max_new_tokens=8, eos_token_id=[])
    theirs = tiny_lm[0].generate(IDS, pad_token_id=2, **options)
    assert torch.equal(model.generate(IDS, **options), theirs)
    assert torch.equal(model.generate(IDS, added_layers="dropped", **options), theirs)
    kept = model.generate(IDS, added_layers="kept", **options)
    assert not torch.equal(kept, theirs)


# -- what users of transformers do -----------------------------------------------------


@pytest.fixture
def exported(trained, tmp_path):
    """A model and the directory of its export."""
    trained = trained("dus", "e_branchformer", "all")
    export(*trained.files, tmp_path / "exported")
    return trained, tmp_path / "exported"


def test_the_pipeline_for_speech_transcribes_as_the_search_does(
    exported, auto, noises, tmp_path
):
    from espnet_dus.search.speech2text import Speech2Text

    trained, directory = exported
    search = dict(repetition=0, no_speech=0.0)
    speech = noises(0.6, 0.9)
    expected = [h.text for h in Speech2Text(*trained.files, search=search)(speech)]
    assert all(expected)
    asr = pipeline("automatic-speech-recognition", model=str(directory), device="cpu")
    assert [asr(s)["text"].strip() for s in speech] == expected
    together = asr([s.copy() for s in speech], batch_size=2)
    # what follows the shorter speech's own limit is the batch's
    assert together[1]["text"].strip() == expected[1]
    assert together[0]["text"].strip().startswith(expected[0])
    other_rate = soxr.resample(speech[1], 16000, 8000)
    heard = asr({"raw": other_rate, "sampling_rate": 8000})["text"]
    assert heard and asr.feature_extractor.sampling_rate == 16000


def test_the_pipeline_for_text_continues_as_the_base_lm(
    exported, auto, tiny_base_lm_dir
):
    asked = dict(max_new_tokens=6, do_sample=False)
    made = [
        pipeline("text-generation", model=str(model), device="cpu")("the cat", **asked)
        for model in (exported[1], tiny_base_lm_dir)
    ]
    assert made[0] == made[1] and made[0][0]["generated_text"].startswith("the cat")


@torch.no_grad()
def test_audio_of_another_rate_is_converted(exported, auto, noises):
    _, processor = auto(exported[1])
    (speech,) = noises(0.9)
    telephone = soxr.resample(speech, 16000, 8000)
    ours = processor(telephone, sampling_rate=8000, return_tensors="pt")
    expected = processor(soxr.resample(telephone, 8000, 16000), sampling_rate=16000)
    assert torch.equal(ours["input_features"], expected["input_features"])
    as_numpy = processor(speech, sampling_rate=16000, return_tensors="np")
    assert isinstance(as_numpy["input_features"], np.ndarray)
    with pytest.raises(ValueError, match="padding: 'max_length', expected True"):
        processor(speech, padding="max_length")


@torch.no_grad()
def test_a_model_saved_again_is_the_same(exported, auto, noises, tmp_path):
    model, processor = auto(exported[1], device_map="auto", torch_dtype=torch.float32)
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to("cpu")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "again")
    again, processor_again = auto(tmp_path / "again")
    inputs = processor(noises(0.6, 0.9), sampling_rate=16000)
    inputs_again = processor_again(noises(0.6, 0.9), sampling_rate=16000)
    assert torch.equal(model(**inputs).logits, again(**inputs_again).logits)
    ids = model.generate(**inputs, num_beams=2, max_new_tokens=4)
    assert torch.equal(
        ids, again.generate(**inputs_again, num_beams=2, max_new_tokens=4)
    )
    texts = processor.batch_decode(ids, skip_special_tokens=True)
    assert texts == processor_again.batch_decode(ids, skip_special_tokens=True)
    assert len(texts) == 2


@torch.no_grad()
def test_text_behind_speech_is_read_behind_the_prompt(exported, auto, noises):
    trained, directory = exported
    model, processor = auto(directory)
    inputs = processor(noises(0.9))
    text = torch.tensor([[5, 9, 11]])
    logits = model(input_ids=text, **inputs).logits
    speech = torch.tensor(noises(0.9)[0])[None]
    embedded = trained.model.embed_speech(speech, torch.tensor([speech.size(1)]))
    seq = trained.model.join_text(*embedded, text, torch.tensor([3]))
    hidden = trained.model.upper(trained.model.lower(seq), seq)
    length = int(seq.lengths_B)
    close(logits[:, :length], trained.model.lm.lm_head(hidden)[:, :length])


@torch.no_grad()
def test_a_model_of_speech_tokens_takes_arrays_of_them(trained, tmp_path, auto):
    encoder = {"encoder": "ctranslate2_whisper", "model": "nowhere", "sha256": ""}
    info = TokenizerInfo("test", encoder, 50.0, 16000, (5, 3))
    info = info.write(tmp_path / "tokenizer")
    trained = trained(
        "dus",
        "e_branchformer",
        "all",
        speech_input="tokens",
        speech_tokenizer=str(tmp_path / "tokenizer"),
        speech_embedder_conf={},
        frontend_conf={},
    )
    export(*trained.files, tmp_path / "exported")
    model, processor = auto(tmp_path / "exported")
    assert model.config.speech_tokenizer == info.identity
    tokens = [np.array([[0, 2], [4, 0], [1, 1]] * 4), np.array([[3, 1], [2, 0]])]
    inputs = processor(tokens)
    assert inputs["input_features"].shape == (2, 12, 2)
    lengths = torch.tensor([12, 2])
    assert torch.equal(inputs["attention_mask"].sum(1), lengths)
    speech = trained.model.embed_speech(inputs["input_features"], lengths)
    text = torch.zeros((2, 0), dtype=torch.long), torch.zeros(2, dtype=torch.long)
    seq = trained.model.join_text(*speech, *text)
    hidden = trained.model.upper(trained.model.lower(seq), seq)
    expected = trained.model.lm.lm_head(hidden)
    logits = model(**inputs).logits
    for ours, theirs, length in zip(logits, expected, seq.lengths_B):
        close(ours[:length], theirs[:length])
    assert model.generate(**inputs, eos_token_id=[]).shape == (2, 12)
    with pytest.raises(RuntimeError, match="encoder .* cannot be loaded .*nowhere"):
        processor(np.zeros(16000, np.float32), sampling_rate=16000)
    with pytest.raises(ValueError, match="frames, 2.*tokenizer test, not .*int64"):
        processor(np.zeros((5, 3), np.int64))


@pytest.fixture(params=["logmel", "whisper"])
def of_tokens(request, trained, noises, tmp_path, whisper_dir):
    """A model of k-means tokens that removes repeats, its tokenizer and its export."""
    spec = request.param
    if spec == "whisper":
        spec = tmp_path / "whisper.yaml"
        spec.write_text(f"encoder: ctranslate2_whisper\nmodel: {whisper_dir}\n")
    tokenizer = tmp_path / "tokenizer"
    (tmp_path / "data").mkdir()
    soundfile.write(tmp_path / "a.wav", noises(2.0)[0], 16000)
    for name, value in (
        ("wav.scp", tmp_path / "a.wav"),
        ("text", "A"),
        ("utt2spk", "a"),
    ):
        (tmp_path / "data" / name).write_text(f"a {value}\n")
    make_tokenizer(tmp_path / "data", tokenizer, str(spec), 6, remove_repeats=True)
    trained = trained(
        "dus",
        "e_branchformer",
        "all",
        speech_input="tokens",
        speech_tokenizer=str(tokenizer),
        speech_embedder_conf={},
    )
    export(*trained.files, tmp_path / "exported")
    return trained, tokenizer, tmp_path / "exported"


@torch.no_grad()
def test_a_model_of_speech_tokens_hears_waveforms(of_tokens, auto, noises, tmp_path):
    from espnet_dus.search.speech2text import Speech2Text

    trained, tokenizer, directory = of_tokens
    search = dict(repetition=0, no_speech=0.0)
    speech2text = Speech2Text(*trained.files, search=search)
    speech = noises(0.6, 0.9)
    tokens = speech2text.speech_tokenizer(speech)
    shutil.move(tokenizer, tmp_path / "gone")  # the export carries its own
    model, processor = auto(directory)
    processor.save_pretrained(tmp_path / "again")
    again = AutoProcessor.from_pretrained(tmp_path / "again")
    inputs = processor(speech, sampling_rate=16000, return_tensors="pt")
    lengths = inputs["attention_mask"].sum(1)
    for n, expected in enumerate(tokens):
        assert inputs["input_features"][n, : lengths[n]].tolist() == expected.tolist()
        alone = again(speech[n], sampling_rate=16000)["input_features"]
        assert alone[0].tolist() == expected.tolist()
    stereo = np.stack([speech[1]] * 2, 1)
    heard = processor(soxr.resample(stereo, 16000, 44100), sampling_rate=44100)
    assert heard["input_features"].shape[2] == 1
    asr = pipeline("automatic-speech-recognition", model=str(directory), device="cpu")
    expected = [hypothesis.text for hypothesis in speech2text(speech)]
    assert [asr(s)["text"].strip() for s in speech] == expected and any(expected)


@pytest.mark.parametrize("arm, kind", [("dus", "transformer"), ("full", None)])
def test_plain_layers_are_exported_whole_on_request(
    trained, tmp_path, auto, noises, arm, kind
):
    from espnet_dus.search.speech2text import Speech2Text

    trained = trained(arm, kind, kind and "all")
    assert export(*trained.files, tmp_path / "exported", whole=True) == "espnet_dus"
    model, processor = auto(tmp_path / "exported")
    speech = noises(0.6)
    ids = model.generate(**processor(speech), max_new_tokens=5)
    (expected,) = Speech2Text(*trained.files)(speech)
    assert ids[0].tolist()[: len(expected.token_int[:5])] == expected.token_int[:5]


def test_lora_is_not_exported_whole(trained, tmp_path):
    with pytest.raises(ValueError, match="whole: arm lora is exported as an adapter"):
        export(*trained("lora").files, tmp_path / "exported", whole=True)
    assert not (tmp_path / "exported").exists()


def test_a_speech_tokenizer_that_is_not_the_models_is_refused(of_tokens, auto):
    directory = of_tokens[2]
    info, centres = read_tokenizer(directory / "speech_tokenizer")
    info.write(directory / "speech_tokenizer", centres + 1)
    with pytest.raises(
        RuntimeError, match="this model belongs to the speech tokenizer"
    ):
        auto(directory)
    shutil.rmtree(directory / "speech_tokenizer")
    with pytest.raises(ValueError, match="takes speech tokens of shape .frames, 1."):
        auto(directory)[1](np.zeros(16000, np.float32), sampling_rate=16000)
