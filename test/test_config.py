"""Training configurations: the `defaults:` list, and its errors."""

import subprocess
import sys

import pytest
import yaml

from espnet_dus.config import load_config


@pytest.fixture
def conf(tmp_path):
    """Return a function that writes a YAML file below `conf/`."""

    def write(name, **content):
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_blocks_are_merged_key_by_key_and_the_file_itself_is_last(conf):
    conf("base.yaml", seed=1, max_epoch=9, optim_conf=dict(lr=0.1, betas=[0.9, 0.95]))
    conf("base_1.7b.yaml", defaults=["base.yaml"], accum_grad=2, seed=2)
    arm = conf(
        "tuning/arm.yaml",
        defaults=["../base_1.7b.yaml"],
        max_epoch=3,
        optim_conf=dict(lr=0.2),
    )
    assert load_config(arm) == dict(
        seed=2, accum_grad=2, max_epoch=3, optim_conf=dict(lr=0.2, betas=[0.9, 0.95])
    )


def test_paths_are_relative_to_the_file_that_a_link_leads_to(conf, tmp_path):
    conf("base.yaml", seed=1)
    arm = conf("tuning/arm.yaml", defaults=["../base.yaml"])
    link = tmp_path / "recipe" / "train_dus.yaml"
    link.parent.mkdir()
    link.symlink_to(arm)
    assert load_config(link) == {"seed": 1}


def test_the_parser_of_the_task_reads_it(conf):
    from espnet_dus.task import DUSTask

    conf("base.yaml", seed=7, optim_conf=dict(lr=0.1), max_epoch=2)
    arm = conf("arm.yaml", defaults=["base.yaml"], adaptation="lora")
    options = ["--config", str(arm), "--max_epoch", "4", "--optim_conf", "eps=0.5"]
    args = DUSTask.get_parser().parse_args(options)
    assert (args.seed, args.max_epoch, args.adaptation) == (7, 4, "lora")
    assert args.optim_conf == dict(lr=0.1, eps=0.5)
    assert not hasattr(args, "defaults")


def test_a_number_with_an_exponent_is_a_number_in_a_file_and_in_an_option(conf):
    from espnet_dus.task import DUSTask

    path = conf("train.yaml")
    path.write_text("optim_conf: {lr: 8e-4}")
    options = ["--config", str(path), "--optim_conf", "eps=1e-9"]
    options += ["--optim_conf", "betas=[.5E+0, 9e-1]", "--lr_scale", "lm=2e0"]
    options += ["--model_conf", "prompt='2e1 words'"]
    args = DUSTask.get_parser().parse_args(options)
    assert args.optim_conf == dict(lr=0.0008, eps=1e-9, betas=[0.5, 0.9])
    assert args.lr_scale == dict(lm=2.0)
    assert args.model_conf["prompt"] == "2e1 words"


def test_a_missing_file_is_named(conf):
    arm = conf("tuning/arm.yaml", defaults=["../base_360m.yaml"])
    with pytest.raises(ValueError, match="arm.yaml: no such file: .*base_360m.yaml"):
        load_config(arm)


def test_a_circle_is_refused(conf):
    conf("a.yaml", defaults=["b.yaml"])
    with pytest.raises(ValueError, match="b.yaml: its `defaults:` list leads back"):
        load_config(conf("b.yaml", defaults=["a.yaml"]))


@pytest.mark.parametrize("text", ["- seed", "seed: [1", "seed: 1\nseed: 2"])
def test_what_is_not_a_mapping_is_refused(conf, text):
    path = conf("arm.yaml")
    path.write_text(text)
    with pytest.raises(ValueError, match="arm.yaml: "):
        load_config(path)


def test_an_unknown_key_of_a_shared_file_is_an_error(conf, capsys):
    from espnet_dus.task import DUSTask

    conf("base.yaml", warmup_stepz=3)
    arm = conf("arm.yaml", defaults=["base.yaml"])
    with pytest.raises(SystemExit):
        DUSTask.get_parser().parse_args(["--config", str(arm)])
    assert "arm.yaml: unknown key(s): warmup_stepz" in capsys.readouterr().err


def test_the_resolved_file_can_be_printed(conf):
    conf("base.yaml", seed=7)
    arm = conf("arm.yaml", defaults=["base.yaml"], max_epoch=2)
    command = [sys.executable, "-m", "espnet_dus.config"]
    printed = subprocess.run([*command, arm], capture_output=True, text=True)
    assert yaml.safe_load(printed.stdout) == dict(seed=7, max_epoch=2)
    failed = subprocess.run([*command, "none.yaml"], capture_output=True, text=True)
    assert failed.returncode == 1 and "no such file" in failed.stderr


def test_loading_does_not_configure_logging(conf):
    arm = conf("arm.yaml", seed=1)
    code = "import logging, espnet_dus.config; logging.root.handlers.clear(); "
    code += f"espnet_dus.config.load_config({str(arm)!r}); "
    code += "assert not logging.root.handlers and logging.root.manager.disable == 0"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
