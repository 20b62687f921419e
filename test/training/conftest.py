"""A corpus of noise, and a training on it."""

import pytest
import soundfile
import yaml

from espnet_dus.task import DUSTask


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, noises, transcripts):
    """Four utterances of noise."""
    directory = tmp_path_factory.mktemp("corpus")
    tables = {"wav.scp": "", "text": "", "speech_shape": ""}
    for i, speech in enumerate(noises(0.9, 0.5, 0.7, 0.4)):
        soundfile.write(directory / f"utt{i}.wav", speech, 16000)
        tables["wav.scp"] += f"utt{i} {directory}/utt{i}.wav\n"
        tables["text"] += f"utt{i} {transcripts[i]}\n"
        tables["speech_shape"] += f"utt{i} {len(speech)}\n"
    for name, lines in tables.items():
        (directory / name).write_text(lines)
    # three of them: two processes get unequal shares
    shapes = tables["speech_shape"].splitlines(keepends=True)
    (directory / "shape_of_three").write_text("".join(shapes[:3]))
    return directory


@pytest.fixture(scope="session")
def train_command(corpus, tiny_options):
    """Return a function that writes a configuration and gives the command's options."""

    def make(out_dir, shape_file="speech_shape", dropout_rate=0.1, **options):
        kept = ("base_lm", "base_lm_conf", "adaptation_conf", "frontend_conf")
        kept += ("speech_embedder_conf", "model_conf", "ctc_units")
        args = tiny_options()
        config = {name: getattr(args, name) for name in kept}
        # what draws random numbers is on: its state must survive an interruption too
        config["adaptation_conf"] = {
            **args.adaptation_conf,
            "dropout_rate": dropout_rate,
        }
        config.update(
            specaug="specaug",
            specaug_conf={"time_mask_width_range": 20},
            optim="adamw",
            optim_conf={"lr": 1e-3},
            scheduler="warmuplr",
            scheduler_conf={"warmup_steps": 2},
            max_epoch=4,
            batch_type="unsorted",
            batch_size=2,
            num_workers=0,
            keep_nbest_models=2,
            best_model_criterion=[["valid", "loss", "min"]],
            use_tensorboard=False,
            use_matplotlib=False,
            num_att_plot=0,
            resume=True,
        )
        config.update(options)
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "train.yaml").write_text(yaml.safe_dump(config))
        command = [
            "--config",
            str(out_dir / "train.yaml"),
            "--output_dir",
            str(out_dir),
        ]
        for which in ("train", "valid"):
            command += [f"--{which}_shape_file", str(corpus / shape_file)]
            for name, table, kind in (
                ("speech", "wav.scp", "sound"),
                ("text", "text", "text"),
            ):
                command += [f"--{which}_data_path_and_name_and_type"]
                command += [f"{corpus / table},{name},{kind}"]
        return command

    return make


@pytest.fixture(scope="session")
def train(train_command):
    """Return a function that trains for four epochs, in this process."""

    def run(out_dir, **options):
        DUSTask.main(cmd=train_command(out_dir, **options))
        return out_dir

    return run
