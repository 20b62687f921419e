"""Every shipped YAML: commented, minimal, and true to its comments."""

import functools
import re
import shutil
from pathlib import Path

import pytest
import yaml

from espnet_dus.config import load_config

ROOT = Path(__file__).resolve().parents[2]
EGS2 = ROOT / "egs2"
# each file once, however many recipes link to it
DECODE = sorted({p.resolve() for p in EGS2.glob("*/dus1/conf/decode_*.yaml")})
BASE = sorted(EGS2.glob("*/dus1/conf/base*.yaml"))
TRAIN = sorted({p.resolve() for p in EGS2.glob("*/dus1/conf/**/train_*.yaml")})
PAPER = [p for p in TRAIN if p.parent.name == "paper" and "TEMPLATE" in p.parts]
AN4 = [p for p in TRAIN if "an4" in p.parts and p.parent.name == "features"]
# the paper's comparison at the size of a CPU, and two arms of ours
AN4_TOKENS = [
    p for p in TRAIN if "an4" in p.parts and p.parent.name in ("paper", "ours")
]
STATED = [p for p in TRAIN if "mini_an4" not in p.parts]

OPUSLM = [5000] + [1024] * 8  # the tokens of each stream of its tokenizer
WHISPER = [500]  # AN4's clusters
# What an arm says of its method even where it is the default.
METHOD = {
    "adaptation",
    "adaptation_conf.kind",
    "adaptation_conf.scope",
    "adaptation_conf.positions",
}
# What follows from the method in AN4's arms, which have a CTC head.
FOLLOWS = {
    "model_conf.ctc_layer",
    "model_conf.ctc_compression",
    "model_conf.text_retention_weight",
    "lr_scale.lm",
}

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


def name(path):
    return str(path.relative_to(EGS2)).replace("/dus1/conf", "")


def own(path):
    """Return what a file itself says: its keys and values, without `defaults`."""
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    keys.pop("defaults", None)
    return keys


def flat(config):
    """Return a configuration with its blocks flattened: `optim_conf.lr`."""
    found = {}
    for key, value in config.items():
        if key.endswith("_conf") or key == "lr_scale":
            found.update({f"{key}.{name}": v for name, v in (value or {}).items()})
        else:
            found[key] = value
    return found


def inherited(path, tmp_path):
    """Return what would hold without the file's own keys, `defaults:` included."""
    found = yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", [])
    shared = tmp_path / "shared.yaml"
    shared.write_text(
        yaml.safe_dump({"defaults": [str(path.parent / f) for f in found]})
    )
    return load_config(shared)


def options_of(path):
    from espnet_dus.task import DUSTask

    options = ["--config", str(path), "--base_lm", "x", "--output_dir", "y"]
    return DUSTask.get_parser().parse_args(options)


def defaults_of(config):
    """Return the defaults of all options, flattened, for what a file chooses."""
    import inspect

    from espnet2.asr.frontend.default import DefaultFrontend
    from espnet2.asr.specaug.specaug import SpecAug
    from espnet2.tasks.abs_task import optim_classes, scheduler_classes
    from espnet2.utils.get_default_kwargs import get_default_kwargs

    from espnet_dus.model.adaptation import ARMS
    from espnet_dus.model.layers import BUILDERS
    from espnet_dus.model.upscaling import upscale
    from espnet_dus.task import DUSTask

    parser = DUSTask.get_parser()
    found = vars(parser.parse_args([]))
    arm = get_default_kwargs(ARMS[config.get("adaptation", "dus")])
    if config.get("adaptation", "dus") == "dus":
        choice = {**get_default_kwargs(upscale), **config.get("adaptation_conf", {})}
        builder = inspect.signature(BUILDERS[choice["kind"], choice["scope"]])
        arm.update({p.name: p.default for p in builder.parameters.values()})
    found.update(
        adaptation_conf=arm,
        frontend_conf=get_default_kwargs(DefaultFrontend),
        specaug_conf=get_default_kwargs(SpecAug),
        optim_conf=get_default_kwargs(optim_classes[config.get("optim", "adadelta")]),
    )
    if config.get("scheduler") is not None:
        scheduler = scheduler_classes[config["scheduler"]]
        found["scheduler_conf"] = get_default_kwargs(scheduler)
    return flat(found)


def plain(value):
    """Return a value as YAML writes it, to compare tuples with lists."""
    return yaml.safe_load(yaml.safe_dump(value)) if value is not None else None


@functools.lru_cache
def adapted(path):
    """Build the LM of a training configuration on the meta device."""
    from espnet_dus.model.adaptation import adapt

    args = options_of(path)
    return adapt(smollm2(size_of(path)), args.adaptation, **args.adaptation_conf)


def embedder_of(path, hidden):
    """Build the speech embedder of a training configuration on the meta device."""
    import torch

    from espnet_dus.model.speech_embedder import SpeechEmbedder
    from espnet_dus.model.token_embedder import TokenEmbedder

    args = options_of(path)
    with torch.device("meta"):
        if args.speech_input == "tokens":
            vocab_sizes = WHISPER if path in AN4_TOKENS else OPUSLM
            return TokenEmbedder(vocab_sizes, hidden, **args.speech_embedder_conf)
        features = 384 if args.frontend == "ctranslate2_whisper" else 80
        return SpeechEmbedder(features, hidden, 1.0, **args.speech_embedder_conf)


def num_trained(lm):
    from espnet_dus.model.checkpoint import parameter_counts

    return parameter_counts(lm)["trained"]


# -- which there are -------------------------------------------------------------------


def test_the_paper_s_arms_are_all_there_for_both_sizes():
    arms = ["full", "lora", "interleaved", "sandwich", "top", "middle", "bottom"]
    arms += ["e_branchformer_interleaved", "e_branchformer_interleaved_random_merge"]
    wanted = {f"train_dus_{size}_{arm}" for size in ("360m", "1.7b") for arm in arms}
    assert {path.stem for path in PAPER} == wanted


def test_an4_has_the_paper_s_arms_with_the_same_adaptation():
    arms = {
        p.stem.removeprefix("train_dus_360m_"): p for p in PAPER if "360m" in p.name
    }
    small = {p.stem.removeprefix("train_dus_"): p for p in AN4_TOKENS}
    assert {name for name, p in small.items() if p.parent.name == "paper"} == set(arms)
    for name, path in arms.items():
        chosen = [load_config(p) for p in (path, small[name])]
        for key in ("adaptation", "adaptation_conf"):
            assert chosen[0].get(key) == chosen[1].get(key)


def test_the_arms_of_an4_differ_in_the_adaptation_and_retention_only():
    shared = load_config(EGS2 / "an4/dus1/conf/base_tokens_135m.yaml")
    for path in AN4_TOKENS:
        config = load_config(path)
        config.pop("adaptation", None), config.pop("adaptation_conf", None)
        config["model_conf"].pop("text_retention_weight", None)
        assert config == shared, path


@pytest.mark.parametrize("corpus", ["librispeech", "english_48k"])
def test_large_recipes_have_the_arms_of_the_template(corpus):
    tuning = EGS2 / corpus / "dus1/conf/tuning"
    assert tuning.resolve() == EGS2 / "TEMPLATE/dus1/conf/tuning"
    assert (EGS2 / corpus / "dus1/conf/train_dus.yaml").resolve() in PAPER


@pytest.mark.parametrize("corpus", ["librispeech", "english_48k", "an4", "mini_an4"])
def test_the_default_of_a_recipe_is_the_paper_s_hybrid(corpus):
    args = options_of(EGS2 / corpus / "dus1/conf/train_dus.yaml")
    assert args.adaptation_conf == dict(
        kind="e_branchformer", scope="all", positions="interleaved"
    )


def test_the_training_files_are_few():
    lines = sum(len(p.read_text().splitlines()) for p in BASE + TRAIN)
    assert lines < 840  # 48 trainings


def test_a_copied_recipe_finds_the_files_it_shares(tmp_path):
    for recipe in ("TEMPLATE", "an4", "librispeech"):
        conf = tmp_path / "egs2" / recipe / "dus1/conf"
        shutil.copytree(EGS2 / recipe / "dus1/conf", conf, symlinks=True)
    for recipe in ("an4", "librispeech"):
        (tmp_path / "egs2" / recipe).rename(tmp_path / "egs2" / f"my_{recipe}")
        copy = tmp_path / "egs2" / f"my_{recipe}" / "dus1/conf/train_dus.yaml"
        original = EGS2 / recipe / "dus1/conf/train_dus.yaml"
        assert load_config(copy) == load_config(original)


# -- what they say ---------------------------------------------------------------------


def commented(path):
    """Return the keys of a file, flattened: those with a comment, and those without."""
    lines, block, found = path.read_text(encoding="utf-8").splitlines(), "", {}
    for number, line in enumerate(lines):
        if match := re.match(r"( *)([a-z_]+):", line):
            indent, key = match.groups()
            block = block if indent else key
            if indent or not line.endswith(("_conf:", "defaults:")):
                key = f"{block}.{key}" if indent else key
                found[key] = lines[number - 1].strip().startswith("#")
    with_one = {key for key, comment in found.items() if comment}
    return with_one, found.keys() - with_one


def test_every_key_of_a_training_has_a_comment_in_one_of_the_files():
    keys = [commented(path) for path in BASE + TRAIN]
    with_one = set().union(*(found for found, _ in keys))
    without = set().union(*(found for _, found in keys))
    assert without - with_one == METHOD
    for path in BASE:  # those that are read first
        assert not commented(path)[1] - {"model_conf.prompt"}, path


@pytest.mark.parametrize("path", DECODE, ids=name)
def test_every_key_of_a_decoding_has_a_comment(path):
    assert commented(path)[1] == set()


@pytest.mark.parametrize("path", BASE + TRAIN, ids=name)
def test_no_key_repeats_what_holds_without_it(path, tmp_path):
    shared = inherited(path, tmp_path)
    without = {**defaults_of({**shared, **own(path)}), **flat(shared)}
    for key, value in flat(own(path)).items():
        if key not in METHOD:
            assert plain(without.get(key)) != plain(value), key


@pytest.mark.parametrize("path", PAPER, ids=name)
def test_the_paper_s_arms_differ_in_the_adaptation_only(path):
    shared = load_config(path.parents[2] / f"base_{size_of(path).lower()}.yaml")
    config = load_config(path)
    assert own(path).keys() <= {"adaptation", "adaptation_conf"}
    config.pop("adaptation", None), config.pop("adaptation_conf", None)
    assert config == shared


@pytest.mark.parametrize("path", AN4, ids=name)
def test_the_arms_of_an4_differ_in_what_the_method_needs(path):
    keys = {key for key in flat(own(path)) if not key.startswith("adaptation")}
    assert keys <= FOLLOWS


def test_the_paper_s_schedule():
    from espnet2.tasks.abs_task import scheduler_classes

    for path in PAPER:
        args = options_of(path)
        assert (args.optim, args.optim_conf["betas"]) == ("adamw", [0.9, 0.95])
        assert args.optim_conf["weight_decay"] == 3e-7 and args.grad_clip == 1.0
        assert args.model_conf["ctc_weight"] == 0.0
        # 8,192 positions, accumulated over 2 batches, on 8 GPUs
        assert args.streaming_conf["tokens_per_update"] == 8 * 2 * 8192
        assert args.scheduler_conf["warmup_steps_list"] == [0.0, 0.05, 1.0]
    import torch

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-5)
    # the shares of 500,000 updates
    conf = {**args.scheduler_conf, "warmup_steps_list": [0, 25000, 500000]}
    scheduler = scheduler_classes[args.scheduler](optimizer, **conf)
    for update, rate in ((12500, 5e-5), (25000, 1e-4), (262500, 6e-5), (500000, 2e-5)):
        scheduler.last_epoch = update - 1
        assert scheduler.get_lr()[0] == pytest.approx(rate)
    scheduler.last_epoch = 500009  # behind its last point it falls on, without a jump
    assert scheduler.get_lr()[0] == pytest.approx(2e-5, rel=1e-4)


@pytest.mark.parametrize("hours", [48_000, 48_216], ids=["the paper's", "english_48k"])
def test_the_paper_s_epochs_are_one_pass_over_its_hours(hours):
    for path in PAPER:
        args = options_of(path)
        assert round(hours / args.streaming_conf["hours_per_epoch"]) == args.max_epoch


@pytest.mark.parametrize("path", TRAIN, ids=name)
def test_a_training_configuration_builds_its_arm(path):
    from espnet_dus.model.upscaling import ctc_layer_index

    lm = adapted(path)
    ctc_layer = options_of(path).model_conf.get("ctc_layer", "inserted:-1")
    if options_of(path).model_conf.get("ctc_weight", 0.3):
        assert 0 <= ctc_layer_index(lm, ctc_layer) < len(lm.model.layers)


@pytest.mark.parametrize("path", PAPER + AN4_TOKENS, ids=name)
def test_stated_positions_are_true(path):
    from espnet_dus.model.placement import parse_positions

    conf = options_of(path).adaptation_conf
    stated = re.search(r"after base layers\n# ([\d, ]+)\.", path.read_text())
    if stated:
        placed = parse_positions(conf["positions"], SMOLLM2[size_of(path)]["layers"])
        assert stated[1] == ", ".join(map(str, placed))
    else:
        assert "positions" not in own(path).get("adaptation_conf", {})


@pytest.mark.parametrize("path", STATED, ids=name)
def test_stated_numbers_of_trained_parameters_are_true(path):
    text = path.read_text(encoding="utf-8")
    stated = re.search(r"^# Trained: ([\d,]+) parameters(.*)$", text, re.MULTILINE)
    hidden, in_lm = SMOLLM2[size_of(path)]["hidden"], num_trained(adapted(path))
    trained = in_lm + num_trained(embedder_of(path, hidden))
    tokens = options_of(path).speech_input == "tokens"
    more = "." if tokens else " (without the CTC head)."
    if path in PAPER + AN4_TOKENS:
        # input table and LM head apart, each with rows of text and of speech, of which
        # full fine-tuning already trains the text's once
        speech_rows = 500 if path in AN4_TOKENS else 13448
        rows = 2 * (49152 + speech_rows) - 49152 * ("full" in path.name)
        count, unit = (in_lm + rows * hidden) / 1e9, "billion"
        if path in AN4_TOKENS:
            count, unit = 1000 * count, "million"
        more = f"; as the paper counts: {count:.3f} {unit}."
    assert stated.groups() == (f"{trained:,}", more)


@pytest.mark.parametrize(
    "arm, trained, total",  # in billions
    [
        ("360m_interleaved", 0.199, 0.513),
        ("360m_e_branchformer_interleaved", 0.225, 0.540),
        ("1.7b_full", 1.867, 1.867),
        ("1.7b_interleaved", 0.659, 2.270),
        ("1.7b_e_branchformer_interleaved", 0.748, 2.358),
    ],
)
def test_parameters_are_those_of_the_paper(arm, trained, total):
    (path,) = (p for p in PAPER if p.stem == f"train_dus_{arm}")
    lm, hidden = adapted(path), SMOLLM2[size_of(path)]["hidden"]
    # an input table with 13,448 rows of speech, and another such table as the LM head
    new_in_all = (13448 + 49152 + 13448) * hidden
    new_trained = new_in_all + 49152 * hidden * ("full" not in arm)
    assert round((num_trained(lm) + new_trained) / 1e9, 3) == trained
    in_all = sum(p.numel() for p in lm.parameters())
    assert round((in_all + new_in_all) / 1e9, 3) == total


@pytest.mark.parametrize("path", [p for p in PAPER if "lora" in p.name], ids=name)
def test_lora_has_the_stated_rank(path):
    rank = adapted(path).model.layers[0].self_attn.q_proj.r["default"]
    assert f", of rank {rank}.\n" in path.read_text()


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
    """Return a function that makes a thin base LM of a SmolLM2's layers and heads."""
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


@pytest.mark.parametrize("path", [p for p in TRAIN if "1.7b" not in p.name], ids=name)
def test_dry_run_builds_model_optimizer_and_scheduler(
    path, thin_base_lm, ctc_units_dirs, tmp_path, tf32_as_it_was
):
    import numpy as np

    from espnet_dus.data.speech_tokens.info import TokenizerInfo
    from espnet_dus.task import DUSTask

    stats = tmp_path / "feats_stats.npz"
    np.savez(stats, count=9, sum=np.zeros(80), sum_square=np.ones(80))
    command = f"--config {path} --base_lm {thin_base_lm(size_of(path))} --dry_run true "
    command += f"--output_dir {tmp_path}/exp --ngpu 0 "
    config = load_config(path)
    if config["model_conf"].get("ctc_weight") != 0.0:
        command += f"--ctc_units {ctc_units_dirs['llm']} "
    if config.get("speech_input") == "tokens":
        info = TokenizerInfo("opuslm", {"encoder": "opuslm"}, 50.0, 16000, OPUSLM)
        info.write(tmp_path / "tokenizer")
        command += f"--speech_tokenizer {tmp_path}/tokenizer "
    else:
        command += "--frontend_conf fs=16k --normalize global_mvn "
        command += f"--normalize_conf stats_file={stats} "
    DUSTask.main(cmd=command.split())
    saved = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())
    assert saved["adaptation"] == config["adaptation"] and "defaults" not in saved
