"""The ESPnet task: options, errors in them, statistics without an LM, the optimizer."""

import numpy as np
import pytest
import soundfile
import torch
import yaml
from espnet2.train.distributed_utils import DistributedOption

from espnet_dus.data.dataset import FaultTolerantDataset
from espnet_dus.data.lengths import min_length
from espnet_dus.model.features import FeatureModel
from espnet_dus.model.layers import KINDS
from espnet_dus.task import DUSTask


@pytest.fixture
def corpus(tmp_path, noises, transcripts):
    """Four utterances of noise."""
    wav_scp = text = ""
    for i, (speech, words) in enumerate(zip(noises(0.9, 0.5, 0.7, 0.4), transcripts)):
        soundfile.write(tmp_path / f"utt{i}.wav", speech, 16000)
        wav_scp += f"utt{i} {tmp_path}/utt{i}.wav\n"
        text += f"utt{i} {words}\n"
    (tmp_path / "wav.scp").write_text(wav_scp)
    (tmp_path / "text").write_text(text)
    return tmp_path


def collect_stats(corpus, **options):
    """Stage 10, in this process."""
    out_dir = corpus / "stats"
    command = ["--collect_stats", "true", "--output_dir", str(out_dir), "--ngpu", "0"]
    command += ["--num_workers", "0", "--batch_size", "2"]
    for which in ("train", "valid"):
        for name, kind in (("speech", "sound"), ("text", "text")):
            table = corpus / ("wav.scp" if name == "speech" else "text")
            command += [f"--{which}_data_path_and_name_and_type"]
            command += [f"{table},{name},{kind}"]
            command += [f"--{which}_shape_file", str(corpus / "wav.scp")]
    for name, values in options.items():
        for value in values if isinstance(values, list) else [values]:
            command += [f"--{name}", str(value)]
    DUSTask.main(cmd=command)
    return out_dir


# -- the parser ------------------------------------------------------------------------


def test_the_parser_takes_what_a_recipe_passes(tmp_path):
    config = tmp_path / "train.yaml"
    config.write_text(
        yaml.safe_dump(
            dict(
                adaptation="dus",
                adaptation_conf=dict(kind="transformer", positions=[0, 2, 2]),
                model_conf=dict(ctc_weight=0.5),
                max_epoch=3,
            )
        )
    )
    args = DUSTask.get_parser().parse_args(
        f"--config {config} --use_preprocessor true --cleaner none "
        "--base_lm lm --ctc_units ctc "
        "--train_data_path_and_name_and_type a/wav.scp,speech,sound "
        "--train_data_path_and_name_and_type a/text,text,text "
        "--valid_data_path_and_name_and_type b/wav.scp,speech,sound "
        "--train_shape_file s/speech_shape --train_shape_file s/text_shape "
        "--fold_length 80000 --fold_length 150 --resume true --output_dir exp "
        "--frontend_conf fs=16k --normalize global_mvn "
        "--normalize_conf stats_file=s/feats_stats.npz --ngpu 0 "
        "--multiprocessing_distributed true --ignore_init_mismatch false "
        "--adaptation_conf scope=all --adaptation_conf positions=interleaved:4 "
        "--model_conf ctc_layer=base:3 --optim adamw --optim_conf lr=0.002".split()
    )
    assert args.adaptation_conf == dict(
        kind="transformer", scope="all", positions="interleaved:4"
    )
    assert args.model_conf == dict(ctc_weight=0.5, ctc_layer="base:3")
    assert args.frontend_conf == {"fs": "16k"}
    assert args.optim_conf == {"lr": 0.002}
    assert args.cleaner is None
    assert args.max_bad_utterances == 0


def test_an_option_that_is_not_known_is_refused(tmp_path, capsys):
    (tmp_path / "train.yaml").write_text("adaption: dus\n")
    with pytest.raises(SystemExit):
        DUSTask.get_parser().parse_args(["--config", str(tmp_path / "train.yaml")])
    assert "adaption" in capsys.readouterr().err


def test_the_base_lm_must_be_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        DUSTask.main(cmd=["--output_dir", str(tmp_path)])
    assert "--base_lm" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, conf, message",
    [
        (
            "base_lm_conf",
            {"dtyp": "float32"},
            "base_lm_conf: unknown option.*dtyp; .*dtype",
        ),
        ("base_lm_conf", {"dtype": "int8"}, "dtype: 'int8' is not one of auto"),
        (
            "speech_embedder_conf",
            {"chanels": 8},
            "speech_embedder_conf: unknown option.*chanels; .*channels",
        ),
        ("speech_embedder_conf", {"input_layer": "conv3d"}, "'conv3d' is not one of"),
        (
            "model_conf",
            {"ctc_wait": 1},
            "model_conf: unknown option.*ctc_wait; .*ctc_weight",
        ),
        (
            "ctc_conf",
            {"dropout": 1},
            "ctc_conf: unknown option.*dropout; .*dropout_rate",
        ),
        (
            "frontend_conf",
            {"fs": 16000, "n_mel": 20},
            "frontend_conf: unknown option.*n_mel; .*n_mels",
        ),
        ("adaptation_conf", {"kinds": 1}, "unknown option.*kinds"),
        ("adaptation_conf", {"positions": [7]}, r"positions: \[7\] out of range"),
        ("ctc_units", "nowhere", "ctc_units: nowhere/units.json is missing"),
    ],
)
def test_a_wrong_key_or_value_is_an_error_that_names_it(
    tiny_model, option, conf, message
):
    with pytest.raises(ValueError, match=message):
        tiny_model(**{option: conf})


@pytest.mark.parametrize(
    "option, name, conf, key",
    [
        ("specaug", "specaug", {"time_wrap": True}, "time_wrap"),
        ("normalize", "utterance_mvn", {"norm_mean": True}, "norm_mean"),
        ("normalize", "global_mvn", {"stats_fil": "x"}, "stats_fil"),
    ],
)
def test_a_wrong_key_of_specaug_or_normalization_is_an_error_that_names_it(
    tiny_model, option, name, conf, key
):
    options = {option: name, f"{option}_conf": conf}
    with pytest.raises(ValueError, match=f"{option}_conf: unknown option.*{key}"):
        tiny_model(**options)


# -- statistics ------------------------------------------------------------------------


def test_statistics_are_collected_without_a_base_lm_in_memory(
    corpus, tiny_base_lm_dir, ctc_units_dirs, monkeypatch
):
    monkeypatch.setattr("espnet_dus.model.build.load_base_lm", None)  # not to be called
    out_dir = collect_stats(
        corpus,
        base_lm=tiny_base_lm_dir,
        ctc_units=ctc_units_dirs["llm"],
        frontend_conf=["n_mels=20", "center=false"],
    )
    shapes = dict(
        line.split() for line in (out_dir / "train/speech_shape").open(encoding="utf-8")
    )
    assert shapes == {"utt0": "14400", "utt1": "8000", "utt2": "11200", "utt3": "6400"}
    assert (out_dir / "train/text_shape").is_file()
    assert (out_dir / "train/text_ctc_shape").is_file()
    stats = np.load(out_dir / "train/feats_stats.npz")
    assert stats["sum"].shape == (20,)
    assert int(stats["count"]) == sum(
        (n - 512) // 128 + 1 for n in map(int, shapes.values())
    )


def test_options_for_training_do_not_disturb_the_statistics(corpus, tiny_base_lm_dir):
    out_dir = collect_stats(
        corpus,
        base_lm=tiny_base_lm_dir,
        freeze_param="speech_embedder",
        adaptation_conf="positions=interleaved:1",
    )
    assert (out_dir / "train/feats_stats.npz").is_file()


def test_an_unknown_input_layer_is_an_error_in_the_statistics_too(
    corpus, tiny_base_lm_dir
):
    with pytest.raises(ValueError, match="input_layer 'conv3d' is not one of conv2d"):
        collect_stats(
            corpus,
            base_lm=tiny_base_lm_dir,
            speech_embedder_conf="input_layer=conv3d",
        )


def test_a_bad_utterance_is_left_out_of_the_statistics(corpus, tiny_base_lm_dir):
    soundfile.write(corpus / "utt1.wav", np.zeros(9), 16000)
    with pytest.raises(RuntimeError, match="utterance utt1: 9 samples"):
        collect_stats(corpus, base_lm=tiny_base_lm_dir)
    out_dir = collect_stats(corpus, base_lm=tiny_base_lm_dir, max_bad_utterances=1)
    lines = (out_dir / "train/speech_shape").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["utt0", "utt2", "utt3"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_file_is_left_out_of_the_statistics(
    corpus, tiny_base_lm_dir, num_workers
):
    (corpus / "utt1.wav").write_bytes(b"no audio")
    options = dict(base_lm=tiny_base_lm_dir, num_workers=num_workers)
    with pytest.raises(RuntimeError, match="utterance utt1: .*0 are allowed"):
        collect_stats(corpus, **options)
    out_dir = collect_stats(corpus, **options, max_bad_utterances=1)
    lines = (out_dir / "train/speech_shape").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["utt0", "utt2", "utt3"]
    assert "utt1 " in (out_dir / "bad_utterances.txt").read_text()


def test_the_statistics_model_has_only_a_frontend(tiny_options):
    model = DUSTask.build_model(tiny_options(collect_stats=True, base_lm="nowhere"))
    assert isinstance(model, FeatureModel)


# -- the shortest utterance ------------------------------------------------------------


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("input_layer", ["conv2d", "conv2d8"])
def test_the_shortest_allowed_utterance_gives_a_position(
    tiny_model, tiny_options, noises, center, input_layer
):
    options = dict(
        frontend_conf=dict(fs="16k", n_fft=512, win_length=400, center=center),
        speech_embedder_conf=dict(input_layer=input_layer, channels=8),
    )
    shortest = min_length(tiny_options(**options))
    speech = torch.from_numpy(noises(1)[0][None, :shortest])
    model = tiny_model(**options).eval()
    assert model.embed_speech(speech, torch.tensor([shortest]))[1].tolist() == [1]


# -- optimizer, data -------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimizer_holds_what_is_trained_and_nothing_else(
    tiny_options, tiny_model, adaptation_conf, kind
):
    args = tiny_options(optim="adamw", optim_conf={"lr": 0.1, "fused": True})
    model = tiny_model(adaptation_conf=adaptation_conf(kind, "speech"))
    (optimizer,) = DUSTask.build_optimizers(args, model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    assert optimizer.defaults["fused"] and optimizer.defaults["lr"] == 0.1


def test_frozen_parts_leave_the_optimizer(tiny_options, tiny_model):
    model = tiny_model()
    model.speech_embedder.requires_grad_(False)  # as --freeze_param does
    args = tiny_options(freeze_param=["speech_embedder"], optim="sgd")
    (optimizer,) = DUSTask.build_optimizers(args, model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in model.speech_embedder.parameters()}


def test_a_freeze_param_that_matches_nothing_is_an_error(tiny_options, tiny_model):
    args = tiny_options(freeze_param=["speech_embedder", "encoder"])
    with pytest.raises(
        ValueError, match="freeze_param: 'encoder' matches no parameter"
    ):
        DUSTask.build_optimizers(args, tiny_model())


def test_training_nothing_is_an_error(tiny_options, tiny_model):
    model = tiny_model().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is trained"):
        DUSTask.build_optimizers(tiny_options(), model)


def test_unreadable_files_are_counted_by_the_tasks_dataset(
    corpus, tiny_options, tmp_path
):
    args = tiny_options(
        output_dir=str(tmp_path / "exp"),
        max_bad_utterances=1,
        train_data_path_and_name_and_type=[
            (str(corpus / "wav.scp"), "speech", "sound"),
            (str(corpus / "text"), "text", "text"),
        ],
    )
    (corpus / "utt2.wav").unlink()
    options = DUSTask.build_iter_options(
        args, distributed_option=DistributedOption(), mode="train"
    )
    dataset = DUSTask.build_dataset(args, options)
    assert isinstance(dataset, FaultTolerantDataset)
    assert dataset["utt2"] == ("utt2", {})
    assert set(dataset["utt0"][1]) == {"speech", "text", "text_ctc"}
    assert "utt2 " in (tmp_path / "exp" / "bad_utterances.txt").read_text()
