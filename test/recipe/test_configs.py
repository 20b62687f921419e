"""Every shipped YAML: commented, known to the commands, of the size it states."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TRAIN = sorted((ROOT / "egs2").glob("*/dus1/conf/**/train_*.yaml"))
# those of one model each; mini_an4's try the others out in seconds
ARMS = [p for p in TRAIN if p.parent.name == "tuning" and "mini_an4" not in p.parts]
DECODE = sorted((ROOT / "egs2").glob("*/dus1/conf/**/decode_*.yaml"))

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

    from espnet_dus.adaptation import adapt
    from espnet_dus.checkpoint import parameter_counts
    from espnet_dus.speech_embedder import SpeechEmbedder

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
    assert len(TRAIN) > 8 and len(DECODE) >= 2 and len(ARMS) >= 7 + 2 * 6


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
    from espnet_dus.adaptation import adapt
    from espnet_dus.ctc import ctc_layer_index

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


@pytest.mark.parametrize("path", [p for p in ARMS if "lora" in p.name], ids=name)
def test_lora_matches_the_inserted_e_branchformer_layers(path):
    lora = options_of(path)
    in_lora, _ = num_trained(path, "lora", lora.adaptation_conf)
    dus = path.with_name(path.name.replace("lora", "e_branchformer_speech"))
    in_layers, _ = num_trained(dus, "dus", options_of(dus).adaptation_conf)
    assert lora.adaptation_conf["match_parameters"] == in_layers
    assert abs(in_lora / in_layers - 1) < 0.01


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
