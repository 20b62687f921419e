"""The table and the picture of several arms."""

import json
import shutil

import pytest

from espnet_dus.app import cli
from espnet_dus.evaluation.comparison import compare

PNG = b"\x89PNG"


def table(text):
    """Rows of the Markdown table: column -> cell, by arm."""
    lines = [
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in text.splitlines()
        if line[:1] == "|"
    ]
    return {cells[0]: dict(zip(lines[0], cells)) for cells in lines[2:]}


@pytest.fixture
def three(make_experiment):
    """An identical arm, one that loses a little, and full fine-tuning."""
    return [
        make_experiment("dus_speech", identical_tokens=77, errors=0),
        make_experiment("dus_lora", adaptation="lora", delta=-0.02),
        make_experiment("dus_full", adaptation="full", delta=-0.08, errors=2),
    ]


def test_table_has_a_row_per_arm_and_one_of_the_base_lm(three, tmp_path):
    text = compare(three, tmp_path / "compare")
    assert (tmp_path / "compare" / "comparison.md").read_text() == text
    rows = table(text)
    assert list(rows) == ["base LM", "speech", "lora", "full"]
    assert rows["base LM"]["perplexity wiki"] == "20.00"
    assert rows["base LM"]["piqa"] == "50.00"
    lora = rows["lora"]
    assert lora["trained"] == "0.00 M (25.0%)"
    assert lora["WER"].startswith("8.3 (0.0 to ")
    assert lora["perplexity wiki"] == "+1.00 +- 0.25"
    assert lora["piqa"] == lora["mean delta"] == "-2.00 +- 1.00"
    assert lora["KL wiki"] == "0.1250"
    assert (lora["epochs"], lora["s/step"], lora["RTFx"]) == ("2", "1.75", "5.0")
    assert (lora["training"], lora["peak memory"]) == ("2.00 h", "3.00 GB")
    assert rows["speech"]["piqa"] == "0 exactly"
    assert "speech: 77" in text


def test_an_arm_with_its_added_layers_dropped_has_a_row(three, tmp_path):
    path = three[1] / "text_eval" / "results.json"
    results = {**json.loads(path.read_text()), "dropped_tokens": 2048}
    path.write_text(json.dumps(results))
    text = compare(three, tmp_path)
    rows = table(text)
    assert list(rows) == ["base LM", "speech", "lora", "lora, dropped", "full"]
    dropped = {name: cell for name, cell in rows["lora, dropped"].items() if cell}
    exactly = dict.fromkeys(("perplexity wiki", "piqa", "mean delta"), "0 exactly")
    assert dropped == {"arm": "lora, dropped", "KL wiki": "0.0000", **exactly}
    assert "lora: 2048" in text


def test_arms_of_unequal_text_retention_are_said_not_to_be_equal(three, tmp_path):
    assert "Not equal" not in compare(three, tmp_path)
    (three[1] / "config.yaml").write_text(
        "adaptation: lora\nmodel_conf: {text_retention_weight: 0.5}\n"
    )
    expected = "weight of text retention (speech: 0, lora: 0.5, full: 0)"
    assert f"- **Not equal**: {expected}" in compare(three, tmp_path)


def test_share_of_the_degradation_avoided_is_against_full_fine_tuning(three, tmp_path):
    rows = table(compare(three, tmp_path))
    shares = {name: row["degradation avoided"] for name, row in rows.items()}
    assert shares == {"base LM": "", "speech": "100%", "lora": "75%", "full": "0%"}
    arms = json.loads((tmp_path / "comparison.json").read_text())["arms"]
    assert arms[1]["degradation_avoided"] == pytest.approx(0.75)
    assert arms[1]["degradation"]["delta"] == pytest.approx(-2.0)


def test_without_a_full_arm_or_a_loss_of_it_no_share_is_given(three, tmp_path):
    rows = table(compare(three[:2], tmp_path))
    assert rows["lora"]["degradation avoided"] == "-"


def test_full_fine_tuning_that_lost_nothing_is_not_a_yardstick(
    make_experiment, tmp_path
):
    arms = [
        make_experiment("dus_lora", delta=-0.02),
        make_experiment("dus_full", adaptation="full", delta=0.01),
    ]
    text = compare(arms, tmp_path)
    assert table(text)["lora"]["degradation avoided"] == "-"
    assert "Full fine-tuning lost nothing on text (+1.00 points)" in text


def test_without_tasks_perplexity_is_the_degradation(make_experiment, tmp_path):
    arms = [
        make_experiment("dus_lora", tasks=False, delta=0.5),
        make_experiment("dus_full", tasks=False, adaptation="full", delta=2.0),
        make_experiment("dus_speech", tasks=False, identical_tokens=9),
    ]
    rows = table(compare(arms, tmp_path))
    assert rows["lora"]["degradation avoided"] == "75%"
    arms = json.loads((tmp_path / "comparison.json").read_text())["arms"]
    assert arms[1]["degradation"]["unit"] == "% perplexity"
    assert arms[1]["degradation"]["delta"] == pytest.approx(10.0)  # 2 of 20
    assert arms[1]["degradation"]["standard_error"] == pytest.approx(1.25)
    assert arms[2]["degradation"]["delta"] == 0


def test_picture_has_a_labelled_point_per_evaluated_arm(three, tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.axes import Axes

    labels = {}
    errorbar = Axes.errorbar

    def record(self, x, y, *, label, **kwargs):
        labels[label] = x, y
        return errorbar(self, x, y, label=label, **kwargs)

    monkeypatch.setattr(Axes, "errorbar", record)
    (three[1] / "text_eval" / "results.json").unlink()
    compare(three, tmp_path)
    assert (tmp_path / "comparison.png").read_bytes()[:4] == PNG
    assert list(labels) == ["speech", "full"]
    assert labels["full"] == (pytest.approx(16.7), pytest.approx(-8.0))


def test_the_eleventh_arm_has_another_marker(make_experiment, tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.axes import Axes

    looks, errorbar = [], Axes.errorbar

    def record(self, x, y, *, marker, color, **kwargs):
        looks.append((marker, color))
        return errorbar(self, x, y, marker=marker, color=color, **kwargs)

    monkeypatch.setattr(Axes, "errorbar", record)
    compare([make_experiment(f"dus_{n}") for n in range(12)], tmp_path)
    assert len(set(looks)) == 12


def test_arm_without_text_results_is_not_run(three, tmp_path):
    (three[1] / "text_eval" / "results.json").unlink()
    row = table(compare(three, tmp_path))["lora"]
    for column in ("perplexity wiki", "piqa", "mean delta", "KL wiki"):
        assert row[column] == "not run"
    assert row["degradation avoided"] == "not run"


def test_without_any_text_results_there_is_no_picture(three, tmp_path):
    compare(three, tmp_path)
    for exp_dir in three:
        (exp_dir / "text_eval" / "results.json").unlink()
    text = compare(three, tmp_path)
    assert "No picture" in text and not (tmp_path / "comparison.png").exists()
    assert "base LM" not in table(text)


def test_different_base_lms_are_refused_before_anything_is_written(
    make_experiment, tmp_path
):
    arms = [make_experiment("dus_a"), make_experiment("dus_b", sha256="f" * 64)]
    with pytest.raises(ValueError, match="dus_a and .*dus_b have different base LMs"):
        compare(arms, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_different_text_evaluations_are_refused(make_experiment, tmp_path):
    arms = [make_experiment("dus_a"), make_experiment("dus_b", limit=10)]
    with pytest.raises(ValueError, match="text evaluations differ.*'limit': 10"):
        compare(arms, tmp_path / "out")


def test_other_items_under_the_same_name_are_refused(make_experiment, tmp_path):
    arms = [make_experiment("dus_a"), make_experiment("dus_b")]
    for arm, version in zip(arms, ("1.0-aa", "1.0-bb")):
        path = arm / "text_eval" / "results.json"
        results = json.loads(path.read_text())
        results["tasks"]["piqa"]["version"] = version
        path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match="evaluations differ.*1.0-aa.*1.0-bb"):
        compare(arms, tmp_path / "out")


def test_different_test_sets_are_refused(make_experiment, tmp_path):
    arms = [make_experiment("dus_a"), make_experiment("dus_b", utterances=3)]
    with pytest.raises(
        ValueError, match="of 4 utterances and 12 words, and of 3 and 9"
    ):
        compare(arms, tmp_path / "out")


def test_each_test_set_has_its_columns_as_in_the_paper(three, tmp_path, capsys):
    for exp_dir in three:
        shutil.copytree(exp_dir / "decode_a" / "test", exp_dir / "decode_a" / "other")
    path = three[1] / "decode_a" / "other" / "score_wer" / "result.txt"
    shutil.copy(three[2] / path.relative_to(three[1]), path)
    options = ["--exp_dir", *map(str, three), "--out_dir", str(tmp_path)]
    cli.main(["compare", *options, "--test_set", "test", "other"])
    row = table(capsys.readouterr().out)["lora"]
    assert row["WER test"].startswith("8.3 (") and row["WER other"].startswith("16.7 (")
    for name in ("CER", "nats per token", "RTFx"):
        assert row[f"{name} test"] == row[f"{name} other"] and name not in row
    page = (tmp_path / "comparison.md").read_text()
    assert (
        f"- Test set: other, decoded in\n  - speech: `{three[0]}/decode_a/other`"
        in page
    )
    with pytest.raises(ValueError, match="no <inference_tag>/clean/"):
        compare(three, tmp_path, ["test", "clean"])


def test_two_arms_of_one_name_are_refused(make_experiment, tmp_path):
    exp_dir = make_experiment("dus_a")
    with pytest.raises(ValueError, match="two arms named a"):
        compare([exp_dir, exp_dir], tmp_path / "out")


def test_command_prints_the_table_and_errors_in_one_line(three, tmp_path, capsys):
    options = ["--out_dir", str(tmp_path / "out"), "--exp_dir", *map(str, three)]
    cli.main(["compare", *options])
    assert "lora" in table(capsys.readouterr().out)
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", *options, str(tmp_path / "dus_none")])
    assert end.value.code == 1
    assert "dus_none: no such experiment directory" in capsys.readouterr().err


def measured(exp_dir, *items, utterances=("a", "b")):
    value, weight = map(sum, zip(*items))
    content = dict(kind="mean", score=value / weight, items=items)
    path = exp_dir / "decode_a" / "test" / "score_ce" / "result.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"utterances": utterances, **content}))


def test_cross_entropy_is_compared_with_the_reference_by_utterance(three, tmp_path):
    measured(three[0], (4.0, 4), (9.0, 6))
    measured(three[1], (6.0, 4), (10.0, 6))
    text = compare(three, tmp_path, reference="lora")
    cells = {name: row["nats per token"] for name, row in table(text).items()}
    # by utterance -2 of 4 and -1 of 6 tokens: residuals -0.16 and 0.16 around -0.3
    assert cells["speech"] == "1.300 (-0.300 +- 0.160)"
    assert (cells["lora"], cells["full"]) == ("1.600", "-")
    arms = json.loads((tmp_path / "comparison.json").read_text())["arms"]
    assert arms[0]["cross_entropy"]["test"]["delta"] == pytest.approx(-0.3)


def test_cross_entropies_of_different_utterances_are_refused(three, tmp_path):
    measured(three[0], (4.0, 4), (9.0, 6))
    measured(three[1], (6.0, 4), (10.0, 6), utterances=("a", "c"))
    with pytest.raises(ValueError, match="dus_lora: .*different utterances"):
        compare(three, tmp_path)


def test_an_unknown_reference_is_refused(three, tmp_path):
    with pytest.raises(ValueError, match="'top' is none of speech, lora, full"):
        compare(three, tmp_path, reference="top")


def test_curves_are_drawn_where_trainings_have_recorded_them(three, tmp_path):
    assert "curves.png" not in compare(three, tmp_path)
    assert not (tmp_path / "curves.png").exists()
    path = three[1] / "training.json"
    curves = {"train": [2.0, 1.0], "valid": [2.5, 1.5]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "curves": curves}))
    assert "(curves.png)" in compare(three, tmp_path)
    assert (tmp_path / "curves.png").read_bytes()[:4] == PNG


def test_the_highest_learning_rate_is_that_of_the_schedule(three, tmp_path):
    (three[0] / "config.yaml").write_text("adaptation: dus\noptim_conf: {lr: 6.0e-4}\n")
    (three[1] / "config.yaml").write_text(
        "adaptation: lora\noptim_conf: {lr: 2.0e-5}\n"
        "scheduler_conf: {warmup_lr_list: [0.0, 1.0e-4, 2.0e-5]}\n"
    )
    rows = table(compare(three, tmp_path))
    assert (rows["speech"]["lr"], rows["lora"]["lr"]) == ("6.0e-04", "1.0e-04")
