"""What is read from an experiment directory, and what is said where it is not there."""

import json
import shutil

import pytest

from espnet_dus.evaluation.results import Delta, read_arm


def test_all_figures_of_an_arm_are_read(make_experiment):
    arm = read_arm(make_experiment("dus_lora", adaptation="lora"), ["test"])
    assert (arm.name, arm.adaptation) == ("lora", "lora")
    assert (arm.trained, arm.total) == (30, 120)
    assert arm.sets["test"].decoding == "decode_a/test"
    assert (arm.sets["test"].wer.utterances, arm.sets["test"].wer.tokens) == (4, 12)
    assert (
        arm.sets["test"].wer.err == pytest.approx(8.3)
        and arm.sets["test"].wer.low <= 8.3 <= arm.sets["test"].wer.high
    )
    assert arm.sets["test"].cer.err < arm.sets["test"].wer.err
    assert arm.perplexity == {"wiki": Delta("token_perplexity", 20.0, 1.0, 0.25)}
    assert arm.tasks == {"piqa": Delta("acc_norm,none", 0.5, -0.02, 0.01)}
    assert arm.tasks["piqa"].is_accuracy and not arm.perplexity["wiki"].is_accuracy
    assert arm.kl == {"wiki": 0.125}
    assert arm.mean_delta == Delta(None, None, -0.02, 0.01)
    assert (arm.wall_seconds, arm.peak_memory_bytes) == (7200.0, 3 * 10**9)
    assert arm.peak_memory_of == "process"
    assert (arm.epochs, arm.seconds_per_step) == (2, 1.75)


def test_rtfx_is_of_all_jobs(make_experiment):
    exp_dir = make_experiment("dus_x")
    assert read_arm(exp_dir, ["test"]).sets["test"].rtfx == pytest.approx(
        (30.0 + 10.0) / (5.0 + 3.0)
    )


def test_rtfx_is_unknown_where_reports_of_an_earlier_run_remain(make_experiment):
    exp_dir = make_experiment("dus_x")
    logdir = exp_dir / "decode_a" / "test" / "logdir"
    shutil.copytree(logdir / "output.1", logdir / "output.3")
    assert read_arm(exp_dir, ["test"]).sets["test"].rtfx is None


def test_missing_figures_are_none(make_experiment):
    exp_dir = make_experiment("dus_x")
    for name in ("training.json", "config.yaml"):
        (exp_dir / name).unlink()
    shutil.rmtree(exp_dir / "decode_a" / "test" / "logdir")
    (exp_dir / "text_eval" / "results.json").unlink()
    arm = read_arm(exp_dir, ["test"])
    for name in (
        "adaptation epochs seconds_per_step wall_seconds peak_memory_bytes "
        "peak_memory_of text_setting mean_delta"
    ).split():
        assert getattr(arm, name) is None, name
    assert arm.sets["test"].rtfx is None and arm.sets["test"].cross_entropy is None
    assert arm.perplexity == arm.tasks == arm.kl == {}


@pytest.mark.parametrize("base_is_known", [True, False])
def test_an_identical_model_has_deltas_of_zero(make_experiment, base_is_known):
    exp_dir = make_experiment("dus_x", identical_tokens=77)
    if not base_is_known:
        path = exp_dir / "text_eval" / "results.json"
        results = json.loads(path.read_text())
        results["texts"]["wiki"] = {"items": 0, "metrics": {}}
        results["tasks"]["piqa"] = {"items": 0, "metrics": {}}
        results["mean_delta"] = None
        path.write_text(json.dumps(results))
    arm = read_arm(exp_dir, ["test"])
    assert arm.identical_tokens == 77
    assert arm.perplexity["wiki"].base == (20.0 if base_is_known else None)
    for delta in (arm.perplexity["wiki"], arm.tasks["piqa"], arm.mean_delta):
        assert (delta.delta, delta.standard_error) == (0.0, 0.0)
    assert arm.kl == {"wiki": 0.0}


def test_missing_directory_or_training_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="dus_x: no such experiment directory"):
        read_arm(tmp_path / "dus_x", ["test"])
    with pytest.raises(ValueError, match="no params.json; train first"):
        read_arm(tmp_path, ["test"])


def test_test_set_that_is_not_scored_is_an_error_that_names_what_is(make_experiment):
    exp_dir = make_experiment("dus_x")
    with pytest.raises(
        ValueError, match="only decode_a/test is scored; decode and score"
    ):
        read_arm(exp_dir, ["eval"])
    with pytest.raises(ValueError, match="no decode_b/test/score_wer"):
        read_arm(exp_dir, ["test"], "decode_b")


def test_one_of_several_decodings_must_be_chosen(make_experiment):
    exp_dir = make_experiment("dus_x")
    (exp_dir / "decode_b").symlink_to("decode_a")
    with pytest.raises(ValueError, match="decode_a, decode_b; choose one with"):
        read_arm(exp_dir, ["test"])
    assert (
        read_arm(exp_dir, ["test"], "decode_b").sets["test"].decoding == "decode_b/test"
    )


@pytest.mark.parametrize(
    "name", ["text_eval/results.json", "decode_a/test/score_ce/result.json"]
)
def test_results_of_another_checkpoint_than_the_decodings_are_refused(
    make_experiment, name
):
    exp_dir = make_experiment("dus_x")
    path = exp_dir / name
    path.parent.mkdir(exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {"score": 1.0}
    path.write_text(json.dumps({**results, "checkpoint": "last"}))
    read_arm(exp_dir, ["test"])  # the decoding does not say: of an earlier version
    for decoded, is_refused in (("last", False), ("averaged", True)):
        for report in exp_dir.glob("decode_a/test/logdir/output.*/decode.json"):
            job = {**json.loads(report.read_text()), "checkpoint": decoded}
            report.write_text(json.dumps(job))
        if is_refused:
            with pytest.raises(ValueError, match="another checkpoint than .*decode_a"):
                read_arm(exp_dir, ["test"])
        else:
            read_arm(exp_dir, ["test"])


def test_broken_json_is_an_error_that_names_the_file(make_experiment):
    exp_dir = make_experiment("dus_x")
    (exp_dir / "training.json").write_text("{")
    with pytest.raises(ValueError, match="training.json: not JSON"):
        read_arm(exp_dir, ["test"])


def test_a_damaged_configuration_is_named_with_its_line(make_experiment):
    exp_dir = make_experiment("dus_x")
    (exp_dir / "config.yaml").write_text("adaptation: dus\n model_conf: {}\n")
    with pytest.raises(ValueError, match="dus_x/config.yaml:2: not YAML: mapping"):
        read_arm(exp_dir, ["test"])


def test_an_inference_tag_is_a_name_and_no_pattern(make_experiment):
    exp_dir = make_experiment("dus_x")
    (exp_dir / "decode_a").rename(exp_dir / "decode_[0.3]")
    assert (
        read_arm(exp_dir, ["test"], "decode_[0.3]").sets["test"].decoding
        == "decode_[0.3]/test"
    )
    with pytest.raises(ValueError, match=r"no decode_\*/test/score_wer/result.txt"):
        read_arm(exp_dir, ["test"], "decode_*")
