#!/usr/bin/env python3
"""Check a GPU in a few minutes: training steps of every arm, resumption, decoding, DDP.

Base LMs are random weights of the published sizes and speech is random tokens, so that
nothing is fetched. A check that fails does not stop the others. The results go to a
JSON file and, with --doc, into the tables of doc/gpu.md.

    tools/benchmarks/gpu_check.sh --out gpu_check.json --doc doc/gpu.md
"""

import argparse
import gc
import importlib.util
import json
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import kaldiio
import numpy as np
import torch
import yaml
from tabulate import tabulate
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from espnet_dus.bin import dus_train
from espnet_dus.data.ctc_units import CTCUnits
from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.model.base_lm import weights_sha256
from espnet_dus.model.build import load_model
from espnet_dus.model.checkpoint import parameter_counts
from espnet_dus.search.beam import beam_search
from espnet_dus.search.config import SearchConfig
from espnet_dus.search.encoding import encode
from espnet_dus.search.greedy import greedy_search
from espnet_dus.task import DUSTask
from espnet_dus.training.flops import Work, peak_flops, training_flops
from espnet_dus.training.throughput import peak_memory

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools/benchmarks")]
from scaling import BASE_LMS, OPUSLM  # noqa: E402

CONFIG_DIR = ROOT / "egs2/TEMPLATE/dus1/conf/tuning/paper"
TOY = dict(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=128,
)
FRAMES_PER_SECOND = 50
TEXTS = ["one two three", "yes", "stop the dog", "how are you today"]
SEARCHES = {
    "greedy": {},
    "drafted by CTC": {"draft": True},
    "beam of 5": {"beam_size": 5},
}
# Trainings are forked from a server that has imported everything once and no GPU.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["espnet_dus.task", "transformers.models.llama"])
TIMEOUT = 480  # seconds of a training
BEGIN, END = "<!-- gpu_check: begin -->", "<!-- gpu_check: end -->"


def get_parser():
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("gpu_check.json"), help="JSON file to write")
    add("--doc", type=Path, help="Markdown file whose tables are filled")
    add("--sizes", nargs="+", default=["360m", "1.7b"], choices=list(BASE_LMS))
    add("--arms", nargs="+", help="default: all of the paper's")
    add("--tokens", type=int, default=8192, help="LLM positions in a batch")
    add("--seconds", type=float, default=12.0, help="of speech in an utterance")
    add("--steps", type=int, default=5, help="steps timed, after two that are not")
    add("--compile_backend", default="inductor", help="of torch.compile")
    add("--toy", action="store_true", help="sizes for a CPU: does the script run?")
    return parser


# -- what the checks need --------------------------------------------------------------


def write_base_lm(directory, sizes):
    """Write a base LM of random weights, and a tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|im_end|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
    ).save_pretrained(directory)
    vocab_size = 512 if sizes is TOY else 49152
    config = LlamaConfig(
        vocab_size=vocab_size,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        eos_token_id=0,
        pad_token_id=0,
        **sizes,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        lm = LlamaForCausalLM(config).to(torch.bfloat16)
    lm.save_pretrained(directory)
    identity = {"name": "random", "revision": "", "sha256": weights_sha256(directory)}
    (directory / "identity.json").write_text(json.dumps(identity))
    return directory


def write_corpus(directory, vocab_sizes):
    """Write utterances of random speech tokens, CTC units and a training's options."""
    random = np.random.default_rng(0)
    frames = {f"utt{i}": 100 + 10 * i for i in range(16)}
    with kaldiio.WriteHelper(f"ark,scp:{directory}/f.ark,{directory}/feats.scp") as out:
        for key, number in frames.items():
            tokens_SK = random.integers(
                min(vocab_sizes), size=(number, len(vocab_sizes))
            )
            out(key, tokens_SK.astype(np.int32).flatten())
    texts = {key: TEXTS[i % len(TEXTS)] for i, key in enumerate(frames)}
    (directory / "text").write_text("".join(f"{k} {t}\n" for k, t in texts.items()))
    shapes = "".join(f"{k} {n * len(vocab_sizes)}\n" for k, n in frames.items())
    (directory / "shape").write_text(shapes)


def build(base_lm, tokenizer, config, *options):
    """Build the model of a training configuration; return it with its options."""
    command = [
        "--config",
        str(config),
        "--base_lm",
        str(base_lm),
        "--output_dir",
        "none",
    ]
    command += ["--speech_tokenizer", str(tokenizer), *options]
    args = DUSTask.get_parser().parse_args(command)
    return DUSTask.build_model(args), args


def make_batch(model, options, device):
    """Make a batch of equal utterances, and what it holds."""
    speech, text = round(options.seconds * FRAMES_PER_SECOND), round(
        options.seconds * 3
    )
    work = Work.of(speech, text, len(model.prompt_ids), speech)
    size = max(1, options.tokens // int(work.positions))
    sizes = torch.tensor(model.speech_embedder.vocab_sizes)
    tokens_BSK = (torch.rand(size, speech, len(sizes)) * sizes).long()
    batch = dict(
        speech=tokens_BSK,
        speech_lengths=torch.full((size,), speech),
        text=torch.randint(1, 250, (size, text)),
        text_lengths=torch.full((size,), text),
    )
    batch = {name: values.to(device) for name, values in batch.items()}
    return batch, Work(*(size * number for number in work))


def synchronize():
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def train_step(call, model, optimizer, batch):
    """Do a training step; return its loss."""
    loss = call(**batch)[0]
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def timed(call, model, optimizer, batch, steps):
    """Return the median seconds of a step, and the last loss."""
    seconds = []
    for _ in range(2 + steps):
        synchronize()
        begin = time.perf_counter()
        loss = train_step(call, model, optimizer, batch)
        synchronize()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[2:]), loss


# -- the checks ------------------------------------------------------------------------


def check_arm(base_lm, tokenizer, config, options, attention, compile_backend=None):
    """Time the step of an arm, with and without gradient checkpointing."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = ["--base_lm_conf", f"attn_implementation={attention}"]
    model, args = build(base_lm, tokenizer, config, *setting)
    model = model.to(device).train()
    (optimizer,) = DUSTask.build_optimizers(args, model)
    batch, work = make_batch(model, options, device)
    flops = sum(training_flops(model.lm, model.speech_embedder, model.ctc, work))
    peak = peak_flops()
    counts = parameter_counts(model)
    predicted = 2 * counts["frozen"] + (16 + 2) * counts["trained"]
    call = model
    if compile_backend is not None:
        call = torch.compile(model, backend=compile_backend)
    results = []
    for checkpointing in (False, True):
        if checkpointing and compile_backend is not None:
            continue
        if checkpointing:
            model.lm.gradient_checkpointing_enable({"use_reentrant": False})
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        seconds, loss = timed(call, model, optimizer, batch, options.steps)
        results.append(
            dict(
                attention=attention,
                compiled=compile_backend,
                checkpointing=checkpointing,
                step_seconds=seconds,
                tokens_per_second=work.positions / seconds,
                mfu=flops / seconds / peak if peak else None,
                peak_gb=peak_memory() / 1e9,
                predicted_gb_without_activations=predicted / 1e9,
                loss=loss,
            )
        )
    return results


def train_command(directory, base_lm, tokenizer, exp):
    """Return the options of a training of the tiny model."""
    config = dict(
        speech_input="tokens",
        base_lm_conf={"dtype": "float32"},
        adaptation_conf=dict(kind="e_branchformer", scope="all", cgmlp_conv_kernel=5),
        model_conf=dict(prompt="Transcript:", ctc_weight=0.3),
        ctc_units=str(directory / "ctc_units"),
        optim="adamw",
        optim_conf=dict(lr=2e-3, fused=True),
        max_epoch=2,
        num_iters_per_epoch=8,
        save_interval_steps=2,
        batch_type="unsorted",
        batch_size=4,
        num_workers=1,
        num_att_plot=0,
        use_tensorboard=False,
        use_matplotlib=False,
        best_model_criterion=[["valid", "loss", "min"]],
        keep_nbest_models=1,
        resume=True,
        ngpu=int(torch.cuda.is_available()),
    )
    (directory / "train.yaml").write_text(yaml.safe_dump(config))
    command = ["--config", f"{directory}/train.yaml", "--base_lm", str(base_lm)]
    command += ["--speech_tokenizer", str(tokenizer), "--output_dir", str(exp)]
    for part in ("train", "valid"):
        command += [f"--{part}_shape_file", f"{directory}/shape"]
        for triple in ("feats.scp,speech,kaldi_ark", "text,text,text"):
            option = f"--{part}_data_path_and_name_and_type"
            command += [option, f"{directory}/{triple}"]
    return command


def train(command, log):
    """Train; the output of this process goes to a file."""
    with log.open("w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    multiprocessing.set_start_method("fork", force=True)  # for its loaders, as usual
    dus_train.main(command)


def run(commands):
    """Run trainings beside each other; return the output of the first.

    Raises:
        RuntimeError: One failed; the message ends with its output.
    """
    with tempfile.TemporaryDirectory() as logs:
        paths = [Path(logs) / str(i) for i in range(len(commands))]
        processes = [start(*pair) for pair in zip(commands, paths)]
        for process in processes:
            process.join(TIMEOUT)
            process.kill()
            process.join()
        said = [path.read_text(encoding="utf-8") for path in paths]
    for process, text in zip(processes, said):
        if process.exitcode:
            raise RuntimeError(f"exit code {process.exitcode}: {text[-2000:]}")
    return said[0]


def start(command, path):
    """Start a training whose output goes to a file."""
    path.touch()
    process = PROCESSES.Process(target=train, args=(command, path))
    process.start()
    return process


def check_resumption(command, exp):
    """Kill a training once it has saved a state inside an epoch; start it again."""
    log, deadline = exp.with_suffix(".log"), time.monotonic() + TIMEOUT
    process = start(command, log)
    try:
        while "step_checkpoints" not in log.read_text(encoding="utf-8"):
            if not process.is_alive() or time.monotonic() > deadline:
                said = log.read_text(encoding="utf-8")
                raise RuntimeError(f"no state was saved: {said[-2000:]}")
            time.sleep(0.02)
    finally:
        process.kill()
        process.join()
    resumed = "resuming inside epoch" in run([command])
    if not resumed:
        raise RuntimeError("the training restarted from the beginning")
    return {"resumed": resumed, "epochs": _epochs(exp)}


def _epochs(exp):
    return json.loads((exp / "training.json").read_text(encoding="utf-8"))["epochs"]


def check_ddp(command, exp):
    """Train in two processes that exchange gradients by gloo, on one GPU or on CPUs."""
    common = ["--multiprocessing_distributed", "false", "--dist_backend", "gloo"]
    common += ["--dist_init_method", f"file://{exp}.init", "--dist_world_size", "2"]
    if torch.cuda.is_available():
        common += ["--local_rank", "0"]
    run([[*command, *common, "--dist_rank", rank] for rank in "01"])
    return {"epochs": _epochs(exp)}


def check_decoding(exp, options):
    """Decode with the tiny model; return seconds of speech in a second, by search."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _ = load_model(exp / "config.yaml", exp / "valid.loss.best.pth", device)
    batch, _ = make_batch(model.eval(), options, device)
    speech = batch["speech"], batch["speech_lengths"]
    seconds = float(batch["speech_lengths"].sum()) / FRAMES_PER_SECOND
    rates = {}
    for name, search in SEARCHES.items():
        search = SearchConfig.make({**search, "maxlenratio": 0.05})
        find = greedy_search if search.beam_size == 1 else beam_search
        for _ in range(2):  # the first builds what the second uses
            synchronize()
            begin = time.perf_counter()
            find(model, encode(model, *speech, search.draft), search)
            synchronize()
            rates[name] = round(seconds / (time.perf_counter() - begin), 1)
    return rates


# -- the whole -------------------------------------------------------------------------


def attempt(results, name, function, *args):
    """Record what a check returns, or its error."""
    begin = time.perf_counter()
    try:
        found = {"result": function(*args)}
    except Exception as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    found["seconds"] = round(time.perf_counter() - begin, 1)
    logging.info(f"{name}: {found}")
    results[name] = found
    gc.collect()
    torch.cuda.empty_cache()


def check_all(options, directory):
    """Run all checks; return their results by name."""
    results = {}
    tokenizer = directory / "tokenizer"
    vocab_sizes = (20, 10) if options.toy else OPUSLM
    TokenizerInfo(
        "random", {"encoder": "none"}, FRAMES_PER_SECOND, 16000, tuple(vocab_sizes)
    ).write(tokenizer)
    tiny = write_base_lm(directory / "tiny", TOY)
    write_corpus(directory, vocab_sizes)
    units = PreTrainedTokenizerFast.from_pretrained(tiny)
    CTCUnits.make(directory / "ctc_units", "llm", TEXTS, units)

    exp = directory / "one"
    command = train_command(directory, tiny, tokenizer, exp)
    attempt(results, "kill and resume", check_resumption, command, exp)
    attempt(results, "decoding", check_decoding, exp, options)
    exp = directory / "two"
    command = train_command(directory, tiny, tokenizer, exp)
    attempt(results, "two processes", check_ddp, command, exp)

    attentions = ["sdpa"]
    if importlib.util.find_spec("flash_attn"):
        attentions.append("flash_attention_2")
    for size in options.sizes:
        base_lm = (
            tiny if options.toy else write_base_lm(directory / size, BASE_LMS[size])
        )
        configs = {
            path.stem.removeprefix(f"train_dus_{size}_"): path
            for path in sorted(CONFIG_DIR.glob(f"train_dus_{size}_*.yaml"))
        }
        for arm in options.arms or configs:
            name, parts = f"{size} {arm}", (base_lm, tokenizer, configs[arm], options)
            for attention in attentions:
                attempt(results, f"{name} {attention}", check_arm, *parts, attention)
        compiled = (*parts, "sdpa", options.compile_backend)
        attempt(results, f"{name} compiled", check_arm, *compiled)
    return results


def machine():
    """Return the machine and versions of the figures."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    has_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if has_gpu else "CPU",
        "cuda": torch.version.cuda if has_gpu else None,
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }


def report(of_machine, results):
    """Return the results as Markdown."""
    of = ", ".join(f"{name} {value}" for name, value in of_machine.items())
    steps, others = [], []
    for name, found in results.items():
        result = found.get("result", found.get("error", "").splitlines()[:1])
        if isinstance(result, list) and result and isinstance(result[0], dict):
            steps += [_row(name, step) for step in result]
        else:
            others.append([name, json.dumps(result), found["seconds"]])
    header = ["arm", "checkpointing", "step, s", "tokens/s", "MFU", "peak, GB"]
    header += ["without activations, predicted"]
    return "\n\n".join(
        [
            f"Of {of}.",
            tabulate(others, ["check", "result", "seconds"], tablefmt="pipe"),
            tabulate(steps, header, tablefmt="pipe", disable_numparse=True),
        ]
    )


def _row(name, step):
    mfu = "-" if step["mfu"] is None else f"{step['mfu']:.1%}"
    return [
        name,
        "yes" if step["checkpointing"] else "no",
        f"{step['step_seconds']:.3f}",
        f"{step['tokens_per_second']:,.0f}",
        mfu,
        f"{step['peak_gb']:.2f}",
        f"{step['predicted_gb_without_activations']:.2f}",
    ]


def fill(path, text):
    """Replace what is between the two marks of a Markdown file.

    Raises:
        ValueError: The file has no such marks.
    """
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{path}: expected the lines {BEGIN} and {END}")
    content = f"{before}{begin}\n{text}\n{end}{after}"
    path.write_text(content, encoding="utf-8")


def main(cmd=None):
    """Run the checks, write their results; return 1 if one failed."""
    options = get_parser().parse_args(cmd)
    if options.toy:
        options.tokens, options.seconds, options.steps = 128, 1.0, 1
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # both processes are here
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    with tempfile.TemporaryDirectory() as directory:
        results = check_all(options, Path(directory))
    of_machine = machine()
    content = {"machine": of_machine, "checks": results}
    options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = report(of_machine, results)
    print(text)
    if options.doc is not None:
        fill(options.doc, text)
    return int(any("error" in found for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
