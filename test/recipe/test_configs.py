"""Every shipped YAML: commented, known to the commands, of the size it states."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TRAIN = sorted((ROOT / "egs2").glob("*/dus1/conf/**/train_*.yaml"))
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


def name(path):
    return str(path.relative_to(ROOT / "egs2"))


def test_there_are_configurations():
    assert len(TRAIN) > 8 and len(DECODE) >= 2


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
    from espnet_dus.task import DUSTask

    options = ["--config", str(path), "--base_lm", "x", "--output_dir", "y"]
    args = DUSTask.get_parser().parse_args(options)
    size = "1.7B" if "1.7b" in path.name else "360M" if "360m" in path.name else "135M"
    lm = adapt(smollm2(size), args.adaptation, **args.adaptation_conf)
    assert 0 <= ctc_layer_index(lm, args.model_conf["ctc_layer"]) < len(lm.model.layers)


@pytest.mark.parametrize("path", DECODE, ids=name)
def test_decoding_configuration_is_known(path):
    from espnet_dus.bin.dus_inference import get_parser

    options = ["--config", str(path), "--output_dir", "y", "--dus_train_config", "c"]
    options += [
        "--dus_model_file",
        "m",
        "--data_path_and_name_and_type",
        "a,speech,sound",
    ]
    args = get_parser().parse_args(options)
    for key, value in yaml.safe_load(path.read_text()).items():
        assert getattr(args, key) == value
