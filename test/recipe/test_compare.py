"""compare.sh with a fake run.sh, which makes finished experiments."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = r"""#!/usr/bin/env bash
echo "threads=${{OMP_NUM_THREADS-none}} $*" >> calls
while [ $# -gt 0 ]; do
    printf -v "${{1#--}}" '%s' "$2"
    shift 2
done
if [ "${{stage}}" = 1 ]; then exit "${{no_data:-0}}"; fi
if [ "${{dus_tag}}" = "${{broken:-none}}" ]; then echo broken >&2; exit 3; fi
exp=${{dus_exp:-${{expdir:-exp}}/dus_${{dus_tag}}}}
mkdir -p "${{exp}}"
cp -r "{experiment}/." "${{exp}}"
touch "${{exp}}/checkpoint.pth"
rate=$(sed -n 's/.* lr=\([^ ]*\).*/\1/p' <<< "${{dus_args}}")
printf 'optim_conf:\n    lr: %s\n' "${{rate:-0.001}}" >> "${{exp}}/config.yaml"
if [ "${{stop_stage}}" = 11 ]; then # a trial: the lower the rate, the better
    touch "${{exp}}/trial"
    echo "{{\"curves\": {{\"valid\": [${{rate}}]}}}}" > "${{exp}}/training.json"
fi
"""


def unpadded(table):
    """Return a Markdown table without the spaces around its cells."""
    return re.sub(r" *\| *", "|", table)


class Recipe:
    """A recipe of three arms."""

    def __init__(self, directory, experiment):
        self.directory = directory
        (directory / "conf" / "tuning" / "paper").mkdir(parents=True)
        (directory / "data" / "test").mkdir(parents=True)
        for name in ("lora", "full", "speech"):
            self.config(name).write_text(f"adaptation: {name}\n")
        (directory / "compare.sh").symlink_to(ROOT / "egs2/TEMPLATE/dus1/compare.sh")
        (directory / "run.sh").write_text(RUN.format(experiment=experiment))
        (directory / "run.sh").chmod(0o755)
        (directory / "path.sh").write_text(
            f'PATH="{Path(sys.executable).parent}:$PATH"\n'
            f'export PYTHONPATH="{ROOT}" OMP_NUM_THREADS=1\n'
        )

    def config(self, name):
        return self.directory / "conf" / "tuning" / "paper" / f"train_dus_{name}.yaml"

    def compare(self, *options, code=0):
        """Run compare.sh; return its output and its calls of run.sh."""
        calls = self.directory / "calls"
        calls.write_text("")
        environment = dict(os.environ)
        environment.pop("OMP_NUM_THREADS", None)
        result = subprocess.run(
            [str(self.directory / "compare.sh"), *map(str, options)],
            cwd="/",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert result.returncode == code, result.stdout
        return result.stdout, calls.read_text().splitlines()

    def table(self, out_dir="exp/compare"):
        return unpadded((self.directory / out_dir / "comparison.md").read_text())


@pytest.fixture
def recipe(tmp_path, make_experiment):
    return Recipe(tmp_path / "recipe", make_experiment("any"))


def stages_1(name, options=""):
    return (
        f"threads=none {options}--dus_config conf/tuning/paper/train_dus_{name}.yaml "
        "--stage 1 --stop_stage 10"
    )


def stages_11(name, options=""):
    return (
        f"threads=none {options}--stage 11 --stop_stage 13 "
        f"--dus_config conf/tuning/paper/train_dus_{name}.yaml --dus_tag {name}"
    )


def test_all_arms_are_run_and_compared(recipe):
    output, calls = recipe.compare()
    assert calls == [
        stages_1("full"),
        stages_11("full"),
        stages_11("lora"),
        stages_11("speech"),
    ]
    for name in ("full", "lora", "speech"):
        assert f"|{name}|" in recipe.table() and f"|{name}|" in unpadded(output)
    assert "arm 2 of 3: lora" in output
    assert (recipe.directory / "exp/compare/comparison.png").exists()


def test_other_options_are_those_of_run_sh(recipe):
    options = ["--expdir", "exp 2", "--nj", "7", "--out-dir", "out"]
    config = "conf/tuning/paper/train_dus_lora.yaml"
    _, calls = recipe.compare("--arms", config, *options)
    assert calls[0] == stages_1("lora", "--expdir exp 2 --nj 7 ")
    assert len(calls) == 2 and calls[1].endswith("--dus_tag lora")
    assert (recipe.directory / "exp 2" / "dus_lora").is_dir()
    assert "|lora|" in recipe.table("out")


def test_what_is_finished_is_not_done_again(recipe):
    arms = (
        "conf/tuning/paper/train_dus_lora.yaml\n conf/tuning/paper/train_dus_full.yaml"
    )
    recipe.compare("--arms", arms)
    output, calls = recipe.compare()
    assert calls == [stages_11("speech")]
    assert "finished before: exp/dus_lora/finished" in output
    assert "|lora|" in recipe.table() and "|speech|" in recipe.table()


def test_an_arm_whose_yaml_has_changed_since_its_training_is_refused(recipe):
    recipe.compare()
    recipe.config("lora").write_text("max_epoch: 99\n")
    output, calls = recipe.compare(code=1)
    assert calls == []
    assert "> max_epoch: 99" in output
    assert (
        "exp/dus_lora was trained with another conf/tuning/paper/train_dus_lora"
        in output
    )
    assert "|full|" in recipe.table() and "|lora|" not in recipe.table()
    (recipe.directory / "exp/dus_lora").rename(recipe.directory / "aside")
    assert recipe.compare()[1] == [stages_11("lora")]
    assert "|lora|" in recipe.table()


def test_a_changed_shared_file_counts_as_a_change_of_its_arms(recipe):
    shared = recipe.directory / "conf" / "base.yaml"
    shared.write_text("max_epoch: 9\n")
    recipe.config("lora").write_text("defaults: [../../base.yaml]\nadaptation: lora\n")
    recipe.compare()
    recipe.config("full").write_text("# a comment\nadaptation: full\n")
    assert recipe.compare()[1] == []
    shared.write_text("max_epoch: 99\n")
    output, calls = recipe.compare(code=1)
    assert calls == [] and "> max_epoch: 99" in output
    assert "exp/dus_lora was trained with another" in output


def test_yaml_may_change_until_an_epoch_is_trained(recipe):
    recipe.compare("--broken", "lora", code=1)
    recipe.config("lora").write_text("max_epoch: 99\n")
    recipe.compare("--broken", "nothing")
    kept = recipe.directory / "exp/dus_lora/arm.yaml"
    assert kept.read_text() == "max_epoch: 99\n"


def test_with_other_options_everything_is_done_again(recipe):
    recipe.compare()
    _, calls = recipe.compare("--text_tasks", "local_piqa")
    assert calls[1] == stages_11("full", "--text_tasks local_piqa ")
    assert len(calls) == 4


@pytest.mark.parametrize("name, calls", [("run.sh", 4), ("conf/decode_dus.yaml", 3)])
def test_with_another_recipe_or_decoding_all_arms_are_repeated(recipe, name, calls):
    (recipe.directory / "conf" / "decode_dus.yaml").write_text("beam_size: 1\n")
    recipe.compare()
    assert recipe.compare()[1] == []
    with (recipe.directory / name).open("a") as file:
        file.write("# changed\n")
    assert len(recipe.compare()[1]) == calls


def test_other_training_options_train_in_another_directory(recipe):
    config = recipe.config("lora")
    recipe.compare("--arms", config, "--dus_args", "--optim_conf lr=2.0e-4")
    assert (recipe.directory / "exp" / "dus_lora_optim_conflr2.0e-4").is_dir()


def test_each_arm_is_trained_at_the_best_of_the_learning_rates(recipe):
    arms = "conf/tuning/paper/train_dus_lora.yaml conf/tuning/paper/train_dus_full.yaml"
    options = ["--arms", arms, "--learning_rates", "2.0e-3 1.0e-3", "--search_epochs"]
    output, calls = recipe.compare(*options, 3, "--dus_args", "--grad_clip 1.0")
    passed = "threads=none --dus_args --grad_clip 1.0 "
    trials = [
        f"{passed}--stage 11 --stop_stage 11 "
        "--dus_config conf/tuning/paper/train_dus_lora.yaml "
        f"--dus_exp exp/lr_{rate}/dus_lora_grad_clip1.0 "
        f"--dus_args --grad_clip 1.0 --optim_conf lr={rate} --max_epoch 3"
        for rate in ("2.0e-3", "1.0e-3")
    ]
    assert calls[1:3] == trials
    assert calls[3].endswith(
        "--dus_exp exp/dus_lora_grad_clip1.0 "
        "--dus_args --grad_clip 1.0 --optim_conf lr=1.0e-3"
    )
    best = "exp/lr_1.0e-3/dus_lora_grad_clip1.0"
    assert f"dus_lora_grad_clip1.0 continues {best}" in output
    assert (recipe.directory / "exp/dus_lora_grad_clip1.0/trial").exists()
    assert len(calls) == 7
    assert recipe.compare(*options, 3, "--dus_args", "--grad_clip 1.0")[1] == []


def test_the_best_rate_is_that_of_its_trial_wherever_it_is(recipe):
    arms = ["--arms", "conf/tuning/paper/train_dus_lora.yaml"]
    _, calls = recipe.compare(*arms, "--learning_rates", "0.1", "--expdir", "./exp/")
    assert calls[2].endswith(" --optim_conf lr=0.1")


def test_an_arm_that_was_trained_at_another_rate_is_refused(recipe):
    arms = ["--arms", "conf/tuning/paper/train_dus_lora.yaml"]
    recipe.compare(*arms, "--learning_rates", "2.0e-3")
    output, calls = recipe.compare(*arms, "--learning_rates", "2.0e-3 1.0e-3", code=1)
    assert len(calls) == 1 and "lr_1.0e-3" in calls[0]  # the new trial
    assert "<     lr: 2.0e-3" in output and ">     lr: 1.0e-3" in output
    assert "exp/dus_lora was trained at another rate" in output


def test_one_failed_arm_does_not_stop_the_others_and_is_named(recipe):
    output, calls = recipe.compare("--broken", "lora", code=1)
    assert len(calls) == 4
    assert "error: failed: lora; see the messages above" in output
    assert "|full|" in recipe.table() and "|lora|" not in recipe.table()
    output, calls = recipe.compare("--broken", "nothing")
    assert "|lora|" in recipe.table()


def test_unknown_test_set_is_an_error_before_any_training(recipe):
    output, calls = recipe.compare("--test_set", "test eval", code=1)
    assert "--test_set eval: there is no data/eval after stage 1" in output
    assert len(calls) == 1


def test_a_comparison_that_fails_is_a_failure(recipe):
    (recipe.directory / "data" / "eval").mkdir()
    output, _ = recipe.compare("--test_set", "eval", code=1)
    assert "error: exp/dus_full: no <inference_tag>/eval/score_wer" in output
    assert "failed: the comparison of exp/dus_full exp/dus_lora" in output


def test_failed_data_preparation_trains_no_arm(recipe):
    output, calls = recipe.compare("--no_data", "1", code=1)
    assert len(calls) == 1 and "error: stages 1-10 failed" in output


def test_an_interrupted_arm_is_the_last(recipe):
    (recipe.directory / "run.sh").write_text(
        "#!/usr/bin/env bash\ntrap 'exit 130' INT\necho $* >> calls\n"
        'if [ "$2" = 11 ]; then sleep 50; fi\n'
    )
    calls = recipe.directory / "calls"
    process = subprocess.Popen(
        [str(recipe.directory / "compare.sh")],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        # bash cannot trap what the tests were started to ignore (as with nohup)
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.time() + 60
    while not calls.exists() or "--stage 11" not in calls.read_text():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    assert process.wait(60) == 130
    assert len(calls.read_text().splitlines()) == 2
    assert not (recipe.directory / "exp" / "dus_full" / "finished").exists()


def test_two_at_once_prepare_the_data_once(recipe):
    run = recipe.directory / "run.sh"
    slow = 'if [ "$2" = 1 ]; then sleep 0.5; fi\n'
    run.write_text(run.read_text().replace("\n", "\n" + slow, 1))
    lanes = [
        subprocess.Popen(
            [recipe.directory / "compare.sh", "--arms", recipe.config(name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("lora", "full")
    ]
    outputs = [lane.communicate(timeout=60)[0] for lane in lanes]
    assert [lane.returncode for lane in lanes] == [0, 0], outputs
    calls = (recipe.directory / "calls").read_text()
    assert calls.count("--stage 1 ") == 1 and calls.count("--stage 11 ") == 2
    assert sum("waiting for it" in output for output in outputs) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        (["--arms", "conf/no.yaml"], "conf/no.yaml: no such training configuration"),
        (["--arms", " "], "--arms names none"),
        (
            ["--arms", "conf/tuning/paper/train_dus_full.yaml " * 2],
            "two arms are called full",
        ),
        (["--stop-stage", "12"], "option --stop-stage is set here for each arm"),
        (["--dus_tag", "x"], "option --dus_tag is set here for each arm"),
        (["--nj"], "option --nj needs a value"),
        (["full"], "unexpected argument 'full'"),
    ],
)
def test_wrong_option_is_an_error_before_anything_is_run(recipe, options, message):
    output, calls = recipe.compare(*options, code=1)
    assert message in output and calls == []


def test_help_says_what_the_options_are(recipe):
    output, calls = recipe.compare("--help")
    assert "--arms" in output and calls == []


@pytest.mark.parametrize("corpus", ["an4", "mini_an4"])
def test_recipes_have_the_command(corpus):
    link = ROOT / "egs2" / corpus / "dus1" / "compare.sh"
    assert os.readlink(link) == "../../TEMPLATE/dus1/compare.sh"
