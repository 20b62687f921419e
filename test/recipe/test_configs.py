"""Every shipped YAML: commented, known to the commands, of the size it states."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# each file once, however many recipes link to it
TRAIN = sorted(
    {p.resolve() for p in (ROOT / "egs2").glob("*/dus1/conf/**/train_*.yaml")}
)
# those of one model each; mini_an4's try the others out in seconds
ARMS = [p for p in TRAIN if p.parent.name == "tuning" and "mini_an4" not in p.parts]
DECODE = sorted(
    {p.resolve() for p in (ROOT / "egs2").glob("*/dus1/conf/**/decode_*.yaml")}
)

TUNING = "dus1/conf/tuning/train_*.yaml"

# config.json of the SmolLM2 models, as published
SMOLLM2 = {
    "135M": dict(hidden=576, layers=30, heads=9, kv_heads=3, ffn=1536),
    "360M": dict(hidden=960, layers=32, heads=15, kv_heads=5, ffn=2560),
    "1.7B": dict(hidden=2048, layers=24, heads=32, kv_heads=32, ffn=8192),
}


def smollm2(size):
    """Build a SmolLM2 on the meta device: shapes without memory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SMOLLM2[size]
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        intermediate_size=shape["ffn"],
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def size_of(path):
    return "1.7B" if "1.7b" in path.name else "360M" if "360m" in path.name else "135M"


def options_of(path):
    from espnet_dus.task import DUSTask

    options = ["--config", str(path), "--base_lm", "x", "--output_dir", "y"]
    return DUSTask.get_parser().parse_args(options)


def num_trained(path, adaptation, adaptation_conf):
    """Count what an arm trains of the LM, and with the speech embedder."""
    import torch

    from espnet_dus.model.adaptation import adapt
    from espnet_dus.model.checkpoint import parameter_counts
    from espnet_dus.model.speech_embedder import SpeechEmbedder

    args = options_of(path)
    size = size_of(path)
    lm = adapt(smollm2(size), adaptation, **adaptation_conf)
    with torch.device("meta"):
        embedder = SpeechEmbedder(
            80, SMOLLM2[size]["hidden"], 1.0, **args.speech_embedder_conf
        )
    in_lm = parameter_counts(lm)["trained"]
    return in_lm, in_lm + parameter_counts(embedder)["trained"]


def name(path):
    return str(path.relative_to(ROOT / "egs2"))


def test_there_are_configurations():
    assert len(TRAIN) > 8 and len(DECODE) >= 2 and len(ARMS) == 7 + 2 * 7


@pytest.mark.parametrize("corpus", ["librispeech", "english_48k"])
def test_large_recipes_have_every_arm_of_the_template(corpus):
    arms = {
        recipe: {p.name: p.resolve() for p in (ROOT / "egs2" / recipe).glob(TUNING)}
        for recipe in ("TEMPLATE", corpus)
    }
    assert arms[corpus] == arms["TEMPLATE"] != {}
    assert (ROOT / "egs2" / corpus / "dus1/conf/train_dus.yaml").resolve() in TRAIN


@pytest.mark.parametrize("path", TRAIN + DECODE, ids=name)
def test_every_key_has_a_comment_above_it(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s*[a-z_]+:", line):
            opens_block = line.rstrip().endswith("_conf:")
            commented = lines[number - 1].strip().startswith("#")
            assert commented or opens_block, (number + 1, line)


@pytest.mark.parametrize("path", TRAIN, ids=name)
def test_training_configuration_builds_its_arm(path):
    from espnet_dus.model.adaptation import adapt
    from espnet_dus.model.upscaling import ctc_layer_index

    args = options_of(path)
    lm = adapt(smollm2(size_of(path)), args.adaptation, **args.adaptation_conf)
    assert 0 <= ctc_layer_index(lm, args.model_conf["ctc_layer"]) < len(lm.model.layers)


@pytest.mark.parametrize("path", ARMS, ids=name)
def test_stated_number_of_trained_parameters_is_true(path):
    stated = re.findall(
        r"^# Trained: ([\d,]+) parameters, ([\d.]+) % of full fine-tuning's "
        r"\(without the CTC head\)\.$",
        path.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    args = options_of(path)
    _, trained = num_trained(path, args.adaptation, args.adaptation_conf)
    _, all_of_it = num_trained(path, "full", {})
    share = 100 * trained / all_of_it
    assert stated == [(f"{trained:,}", f"{share:.1f}")]
    assert share <= 40 or args.adaptation == "full"


@pytest.mark.parametrize("path", DECODE, ids=name)
def test_decoding_configuration_is_known(path):
    from espnet_dus.bin.dus_inference import get_parser

    options = ["--config", str(path), "--output_dir", "y", "--asr_train_config", "c"]
    options += [
        "--asr_model_file",
        "m",
        "--data_path_and_name_and_type",
        "a,speech,sound",
    ]
    args = get_parser().parse_args(options)
    for key, value in yaml.safe_load(path.read_text()).items():
        assert getattr(args, key) == value


# -- dry runs --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def thin_base_lm(tmp_path_factory, tiny_base_lm_dir):
    """Give a function: a base LM with the layers and heads of a SmolLM2, but thin."""
    import json
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from espnet_dus.model.base_lm import weights_sha256

    made = {}

    def make(size):
        if size not in made:
            shape, directory = SMOLLM2[size], tmp_path_factory.mktemp("thin") / size
            shutil.copytree(tiny_base_lm_dir, directory)
            config = LlamaConfig.from_pretrained(directory)
            config.update(
                dict(
                    hidden_size=8 * shape["heads"],
                    head_dim=8,
                    intermediate_size=16,
                    num_hidden_layers=shape["layers"],
                    num_attention_heads=shape["heads"],
                    num_key_value_heads=shape["kv_heads"],
                )
            )
            with torch.random.fork_rng():
                LlamaForCausalLM(config).save_pretrained(directory)
            identity = dict(name=size, revision="", sha256=weights_sha256(directory))
            (directory / "identity.json").write_text(json.dumps(identity))
            made[size] = directory
        return made[size]

    return make


@pytest.fixture
def tf32_as_it_was():
    """Undo `use_tf32`."""
    import torch

    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    yield
    for backend, value in zip(backends, before):
        backend.allow_tf32 = value


@pytest.mark.parametrize("path", TRAIN, ids=name)
def test_dry_run_builds_model_optimizer_and_scheduler(
    path, thin_base_lm, ctc_units_dirs, tmp_path, tf32_as_it_was
):
    import numpy as np

    from espnet_dus.task import DUSTask

    stats = tmp_path / "feats_stats.npz"
    np.savez(stats, count=9, sum=np.zeros(80), sum_square=np.ones(80))
    command = f"--config {path} --base_lm {thin_base_lm(size_of(path))} --dry_run true "
    command += f"--output_dir {tmp_path}/exp --ctc_units {ctc_units_dirs['llm']} "
    command += "--frontend_conf fs=16k --ngpu 0 "
    conf = yaml.safe_load(path.read_text(encoding="utf-8"))
    if conf.get("normalize") == "global_mvn":
        command += f"--normalize_conf stats_file={stats} "
    if conf["adaptation"] == "lora":  # as many as of a thin LM
        command += "--adaptation_conf rank=4 "
    DUSTask.main(cmd=command.split())
    saved = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())
    assert saved["adaptation"] == conf["adaptation"]
