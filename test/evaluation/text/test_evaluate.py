"""Base LM against adapted LM: what is computed, kept, skipped and refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from espnet_dus.app import cli
from espnet_dus.evaluation.text import evaluate as evaluation
from espnet_dus.evaluation.text.evaluate import evaluate, mean_delta
from espnet_dus.evaluation.text.models import Models, count_equal_tokens
from espnet_dus.model.base_lm import identify
from espnet_dus.model.checkpoint import IDENTITY_KEY, checkpoint_sha256
from espnet_dus.task import DUSTask

TASKS = ["local_piqa", "local_lambada"]


def save_checkpoint(path, base_lm, **state):
    """Write a checkpoint that belongs to a base LM."""
    code = json.dumps(vars(identify(base_lm))).encode()
    identity = torch.tensor(list(code), dtype=torch.float32)
    torch.save({**state, IDENTITY_KEY: identity}, path)


@pytest.fixture
def setup(tiny_base_lm_dir, text_data, tmp_path):
    """Arguments of `evaluate` for the base LM alone."""
    text = tmp_path / "wiki.txt"
    text.write_text("the cat sat on the mat and the dog ran after it " * 4)
    return dict(
        base_lm=tiny_base_lm_dir,
        out_dir=tmp_path / "base",
        texts=[text],
        tasks=TASKS,
        data_dir=text_data,
        window=32,
        batch_size=2,
        cache_dir=tmp_path / "cache",
    )


@pytest.fixture
def adapt(setup, tiny_lm, tmp_path, monkeypatch):
    """Arguments of `evaluate` with an adapted model, whose final norm is scaled."""

    def arguments(scale):
        lm, _ = tiny_lm
        with torch.no_grad():
            lm.model.norm.weight.mul_(scale)
        monkeypatch.setattr(Models, "adapted", lm)
        (tmp_path / "config.yaml").write_text("")
        save_checkpoint(tmp_path / "1epoch.pth", setup["base_lm"])
        return dict(
            setup,
            out_dir=tmp_path / "adapted",
            config=tmp_path / "config.yaml",
            model_file=tmp_path / "1epoch.pth",
        )

    return arguments


@pytest.fixture
def computed(monkeypatch):
    """Record which parts are computed, not read from their files."""
    calls = []
    for name in ("score_text", "run_task"):
        function = getattr(evaluation, name)

        def record(what, *args, function=function, **kwargs):
            calls.append(getattr(what, "name", "text"))
            return function(what, *args, **kwargs)

        monkeypatch.setattr(evaluation, name, record)
    return calls


def test_base_alone_gives_scores_without_deltas(setup):
    results = evaluate(**setup)
    metrics = results["texts"]["wiki"]["metrics"]
    assert list(metrics["word_perplexity"]) == ["base"]
    assert results["tasks"]["local_piqa"]["items"] == 3
    assert results["mean_delta"] is None and results["identical_tokens"] is None
    assert json.loads((setup["out_dir"] / "results.json").read_text()) == results
    assert "| wiki " in (setup["out_dir"] / "results.md").read_text()


def test_adapted_model_is_compared_on_every_part(adapt, tmp_path):
    results = evaluate(**adapt(1.5))
    assert results["identical_tokens"] == 0
    assert results["checkpoint"] == checkpoint_sha256(tmp_path / "1epoch.pth")
    wiki = results["texts"]["wiki"]
    assert wiki["kl_per_token"] > 0
    perplexity = wiki["metrics"]["token_perplexity"]
    assert perplexity["delta"] == perplexity["adapted"] - perplexity["base"] != 0
    assert perplexity["standard_error"] > 0
    last_words = results["tasks"]["local_lambada"]["metrics"]["perplexity"]
    assert last_words["adapted"] != last_words["base"]
    assert results["mean_delta"]["metrics"] == {
        "local_piqa": "acc_norm",
        "local_lambada": "acc",
    }


def test_base_perplexity_is_the_same_alone_and_next_to_another(setup, adapt):
    alone = evaluate(**setup)["texts"]["wiki"]["metrics"]["token_perplexity"]
    beside = evaluate(**adapt(1.5))["texts"]["wiki"]["metrics"]["token_perplexity"]
    assert alone["base"] == beside["base"]


def test_finished_base_results_serve_the_comparison(setup, adapt, computed):
    evaluate(**setup)
    assert computed == ["text", *TASKS]
    computed.clear()
    evaluate(**adapt(1.5))
    # the text again, for KL needs both; the tasks for the adapted model alone
    assert computed == ["text", *TASKS]


def test_interrupted_evaluation_resumes(setup, computed, monkeypatch):
    run_task = evaluation.run_task

    def interrupt(task, *args):
        if task.name == "local_lambada":
            raise KeyboardInterrupt
        return run_task(task, *args)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "run_task", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate(**setup)
    assert not (setup["out_dir"] / "results.json").exists()
    computed.clear()
    resumed = evaluate(**setup)
    assert computed == ["local_lambada"]
    computed.clear()
    assert evaluate(**setup) == resumed and computed == []


def test_other_limit_data_or_checkpoint_is_recomputed(adapt, computed, text_data):
    arguments = adapt(1.5)
    evaluate(**arguments)
    computed.clear()
    evaluate(**{**arguments, "limit": 2})
    assert computed == ["text"] + [name for name in TASKS for _ in range(2)]
    computed.clear()
    save_checkpoint(arguments["model_file"], arguments["base_lm"], other=torch.ones(1))
    evaluate(**arguments)
    assert computed == ["text", *TASKS]
    computed.clear()
    with (text_data / "piqa.jsonl").open("a") as file:
        file.write(json.dumps({"query": "q", "choices": ["a", "b"], "gold": 0}) + "\n")
    evaluate(**arguments)
    assert computed == ["local_piqa"] * 2


def test_results_of_another_device_are_recomputed(setup, computed, monkeypatch):
    evaluate(**setup)
    computed.clear()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(Models, "_ready", lambda self, lm, tokenizer: lm.eval())
    evaluate(**setup)
    assert computed == ["text", *TASKS]


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_precision_that_is_not_offered_is_an_error(setup, dtype):
    with pytest.raises(ValueError, match=f"{dtype}.*not one of float32, bfloat16"):
        evaluate(**setup, dtype=dtype)


def test_both_models_are_evaluated_in_the_precision_asked_for(setup, computed):
    exact = evaluate(**setup)
    computed.clear()
    rounded = evaluate(**setup, dtype="bfloat16")
    assert computed == ["text", *TASKS], "another precision is another result"
    assert rounded["dtype"] == "bfloat16"
    wiki = [r["texts"]["wiki"]["metrics"]["token_perplexity"] for r in (exact, rounded)]
    assert wiki[0]["base"] != wiki[1]["base"]
    assert wiki[0]["base"] == pytest.approx(wiki[1]["base"], rel=0.02)


def test_identical_model_is_verified_and_the_rest_is_skipped(setup, adapt, computed):
    evaluate(**setup)
    computed.clear()
    results = evaluate(**adapt(1.0))
    assert computed == []
    assert results["identical_tokens"] == 2048
    metric = results["texts"]["wiki"]["metrics"]["word_perplexity"]
    assert (metric["delta"], metric["standard_error"]) == (0.0, 0.0)
    page = (setup["out_dir"].parent / "adapted/results.md").read_text()
    assert "identical by construction, verified on 2048 tokens" in page


def test_identical_model_without_known_base_results_is_skipped_too(adapt, computed):
    results = evaluate(**adapt(1.0))
    assert computed == [] and results["texts"]["wiki"]["metrics"] == {}


def test_identical_model_is_evaluated_when_asked_for(adapt, computed):
    results = evaluate(**adapt(1.0), even_if_identical=True)
    assert computed == ["text"] + [name for name in TASKS for _ in range(2)]
    assert results["texts"]["wiki"]["kl_per_token"] == 0.0
    deltas = [
        metric["delta"]
        for part in (*results["texts"].values(), *results["tasks"].values())
        for metric in part["metrics"].values()
    ]
    assert len(deltas) == 6 and not any(deltas)


def test_one_weight_of_difference_is_not_identical(tiny_base_lm_dir):
    from transformers import AutoModelForCausalLM

    base, other = (
        AutoModelForCausalLM.from_pretrained(tiny_base_lm_dir, dtype=torch.float32)
        for _ in range(2)
    )
    assert count_equal_tokens(base, other, sequences=2, length=16) == 32
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-3
    assert count_equal_tokens(base, other, sequences=2, length=16) == 0


def test_mean_delta_weighs_tasks_alike():
    def task(delta, error):
        metric = {"base": 0.5, "adapted": 0.5 + delta, "delta": delta}
        return {"metrics": {"acc": {**metric, "standard_error": error}}}

    tasks = {"a": task(-0.04, 0.03), "b": task(-0.02, 0.04)}
    mean = mean_delta({**tasks, "c": {"metrics": {"word_perplexity": {"base": 1.0}}}})
    assert mean["delta"] == pytest.approx(-0.03)
    assert (mean["base"], mean["adapted"]) == pytest.approx((0.5, 0.47))
    assert mean["standard_error"] == pytest.approx(0.025)
    assert mean["metrics"] == {"a": "acc", "b": "acc"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tasks": ["local_pica"]}, "unknown text task local_pica"),
        ({"texts": ["none.txt"]}, "none.txt: no such text file"),
        ({"texts": [], "tasks": []}, "nothing to evaluate"),
        ({"limit": 0}, "limit 0"),
        ({"model_file": "x.pth"}, "expected both"),
        ({"config": "c.yaml", "model_file": "x.pth"}, "c.yaml: no such file"),
    ],
)
def test_errors_come_before_a_model_is_loaded(setup, monkeypatch, change, message):
    def loaded(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("espnet_dus.evaluation.text.models.load_base_lm", loaded)
    with pytest.raises(ValueError, match=message):
        evaluate(**{**setup, **change})


def test_text_and_task_of_one_name_are_an_error(setup, tmp_path):
    (tmp_path / "local_piqa.txt").write_text("the cat sat on the mat")
    with pytest.raises(ValueError, match="local_piqa is a text and a task"):
        evaluate(**{**setup, "texts": [tmp_path / "local_piqa.txt"]})


def test_results_say_which_text_and_which_items(setup, text_data):
    before = evaluate(**setup)
    with (text_data / "piqa.jsonl").open("a") as file:
        file.write(json.dumps({"query": "q", "choices": ["a", "b"], "gold": 0}) + "\n")
    Path(setup["texts"][0]).write_text("another text, of some words")
    after = evaluate(**setup)
    for kind, name in (("texts", "wiki"), ("tasks", "local_piqa")):
        assert before[kind][name]["version"] != after[kind][name]["version"]
    lambada = [r["tasks"]["local_lambada"]["version"] for r in (before, after)]
    assert lambada[0] == lambada[1]


def test_check_reads_the_data_and_evaluates_nothing(setup, text_data, tmp_path, capsys):
    out_dir = tmp_path / "checked"
    options = ["--base_lm", "none", "--out_dir", str(out_dir)]
    options += ["--check_only", "true"]
    options += ["--data_dir", str(text_data), "--tasks", "local_piqa"]
    cli.main(["text_eval", *options])
    assert not out_dir.exists()
    with pytest.raises(SystemExit):
        cli.main(["text_eval", *options, "local_pica"])
    assert "unknown text task local_pica" in capsys.readouterr().err


def test_other_base_lm_than_the_training_is_an_error(adapt, tmp_path, tiny_base_lm_dir):
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other_base"
    shutil.copytree(tiny_base_lm_dir, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    (other / "identity.json").unlink()
    arguments = adapt(1.5)
    save_checkpoint(arguments["model_file"], other)
    with pytest.raises(ValueError, match="trained on the base LM other_base"):
        evaluate(**arguments)


def test_file_that_is_not_a_checkpoint_is_an_error(adapt):
    arguments = adapt(1.5)
    path = arguments["model_file"]
    path.write_text("no weights")
    with pytest.raises(ValueError, match="1epoch.pth: not a whole checkpoint"):
        evaluate(**arguments)
    torch.save({"weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="1epoch.pth: it does not say which base LM"):
        evaluate(**arguments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "arm, identical",
    [("dus-speech", True), ("dus-all", False), ("lora", False), ("full", False)],
)
def test_trained_model_of_each_arm_is_loaded_and_compared(
    arm, identical, dtype, setup, tiny_options, tiny_model, adaptation_conf, randomise
):
    conf = {"rank": 2} if arm == "lora" else {}
    if arm.startswith("dus"):
        conf = adaptation_conf("e_branchformer", arm.split("-")[1])
    options = dict(adaptation=arm.split("-")[0], adaptation_conf=conf, ctc_units=None)
    options["model_conf"] = {"ctc_weight": 0.0}
    trained = randomise(tiny_model(**options), std=0.01)
    directory = setup["out_dir"].parent
    torch.save(trained.state_dict(), directory / "1epoch.pth")
    config = vars(tiny_options(**options))
    config["base_lm"] = "moved/since"
    config["base_lm_conf"] = {"dtype": "bfloat16", "attn_implementation": "eager"}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    results = evaluate(
        **{**setup, "tasks": ["local_lambada"]},
        dtype=dtype,
        config=directory / "config.yaml",
        model_file=directory / "1epoch.pth",
    )
    assert bool(results["identical_tokens"]) == identical
    # with its added layers dropped it is the base LM: in full fine-tuning nothing is
    assert results["dropped_tokens"] == (None if arm == "full" else 2048)
    if not identical:
        assert results["texts"]["wiki"]["kl_per_token"] > 0
        metrics = results["tasks"]["local_lambada"]["metrics"]
        assert metrics["perplexity"]["delta"] != 0


def test_a_model_that_is_not_the_base_lm_when_dropped_is_an_error(
    setup, tiny_options, tiny_model, adaptation_conf, monkeypatch
):
    options = dict(adaptation_conf=adaptation_conf("transformer", "all"))
    model, directory = tiny_model(**options), setup["out_dir"].parent
    torch.save(model.state_dict(), directory / "1epoch.pth")
    (directory / "config.yaml").write_text(
        yaml.safe_dump(vars(tiny_options(**options)))
    )
    model.lm.model.norm.weight.data[0] += 1.0
    monkeypatch.setattr(Models, "adapted", model.lm.eval())
    files = dict(config=directory / "config.yaml", model_file=directory / "1epoch.pth")
    with pytest.raises(RuntimeError, match="1epoch.pth: with its added layers dropped"):
        evaluate(**setup, **files)


def test_command_prints_the_table(setup, capsys):
    cli.main(
        [
            "text_eval",
            *("--base_lm", str(setup["base_lm"]), "--out_dir", str(setup["out_dir"])),
            *("--perplexity_text", str(setup["texts"][0]), "--window", "32"),
        ]
    )
    assert "| wiki " in capsys.readouterr().out


def test_command_names_a_wrong_task(setup, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(
            [
                "text_eval",
                "--base_lm",
                str(setup["base_lm"]),
                "--out_dir",
                "x",
                "--tasks",
                "nope",
            ]
        )
    assert stop.value.code == 1
    assert "unknown text task nope" in capsys.readouterr().err


def test_both_models_generate_under_the_same_neutral_settings(
    tiny_base_lm_dir, tiny_options, tiny_lm, tmp_path
):
    base = shutil.copytree(tiny_base_lm_dir, tmp_path / "penalized")
    settings = json.loads((base / "generation_config.json").read_text())
    settings.update(repetition_penalty=1.1, do_sample=True, temperature=0.7)
    (base / "generation_config.json").write_text(json.dumps(settings))
    # the right answers are what the base LM writes greedily, without a penalty
    lm, tokenizer = tiny_lm
    items = []
    for question in ("the cat sat on", "one two three", "HELLO WORLD", "yes no stop"):
        ids = tokenizer(question, return_tensors="pt").input_ids
        answer = lm.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.size(1) :]
        answer = tokenizer.decode(answer, skip_special_tokens=True).split("\n")[0]
        items.append(json.dumps({"question": question, "answer": answer}))
    (tmp_path / "items.jsonl").write_text("\n".join(items))
    task = dict(
        task="local_generation",
        dataset_path="json",
        dataset_kwargs=dict(data_files=dict(test="items.jsonl")),
        test_split="test",
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{answer}}",
        generation_kwargs=dict(until=["\n"], max_gen_toks=12),
        metric_list=[
            dict(metric="exact_match", aggregation="mean", higher_is_better=True)
        ],
        metadata=dict(version=1.0),
    )
    (tmp_path / "local_generation.yaml").write_text(yaml.safe_dump(task))
    args = tiny_options(base_lm=str(base))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(DUSTask.build_model(args).state_dict(), tmp_path / "model.pth")
    results = evaluate(
        base,
        tmp_path / "out",
        tmp_path / "config.yaml",
        tmp_path / "model.pth",
        tasks=["local_generation"],
        data_dir=tmp_path,
        task_dir=tmp_path,
        batch_size=1,
        even_if_identical=True,
    )
    score = results["tasks"]["local_generation"]["metrics"]["exact_match"]
    assert (score["base"], score["adapted"], score["delta"]) == (1.0, 1.0, 0.0)
