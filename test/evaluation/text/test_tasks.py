"""Tasks are worded and scored as in the harness; errors in their data are named."""

import json

import numpy as np
import pytest
import torch

from espnet_dus.evaluation.text.harness import HarnessLM
from espnet_dus.evaluation.text.tasks import (
    DOWNLOADED,
    TASK_DIR,
    expand_suites,
    load_tasks,
    primary_metric,
    run_task,
)

ALL = [
    "local_lambada",
    "local_arc_easy",
    "local_piqa",
    "local_hellaswag",
    "local_blimp",
    "local_arc_challenge",
    "local_openbookqa",
    "local_boolq",
    "local_winogrande",
]


def requests(task):
    (leaf,) = task.leaves.values()
    leaf.set_config(key="num_fewshot", value=0)
    leaf.build_all_requests(rank=0, world_size=1)
    return [instance.args for instance in leaf.instances]


def log_prob(lm, tokenizer, context, continuation):
    """Sum of the continuation's token log probabilities, without padding or batch."""
    prefix = tokenizer(context)["input_ids"] or [tokenizer.bos_token_id]
    ids = prefix + tokenizer(continuation)["input_ids"]
    with torch.inference_mode():
        rows = lm(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    places = range(len(prefix), len(ids))
    return sum(rows[place - 1, ids[place]].item() for place in places)


def test_requests_are_worded_as_in_the_harness(text_data):
    tasks = load_tasks(ALL, text_data)
    lambada, arc, piqa, hellaswag, blimp, challenge, openbook, boolq, winogrande = tasks
    assert requests(lambada)[0] == ("the cat sat on one and the", " dog")
    assert requests(arc)[0] == ("Question: who sat on one?\nAnswer:", " the cat")
    assert requests(piqa)[1] == ("Question: one\nAnswer:", " stop")
    assert requests(hellaswag)[0] == ("the cat ran.", ' it\'s "on"')
    assert requests(blimp)[0] == ("", " the dog ran")
    assert requests(challenge)[1] == ("Question: who ran?\nAnswer:", " dog")
    assert requests(openbook)[0] == ("the dog ran after", " the cat")
    assert requests(boolq)[1] == (
        "Passage: the cat sat.\nQuestion: did it?\nAnswer:",
        " yes",
    )
    contexts = ["the cat saw the dog and the cat", "so the dog"] * 2
    assert requests(winogrande) == [(context, " ran.") for context in contexts]


def test_winogrande_compares_a_continuation_after_two_contexts(text_data, tiny_lm):
    lm, tokenizer = tiny_lm
    (task,) = load_tasks(["local_winogrande"], text_data)
    metrics = run_task(task, HarnessLM(lm, tokenizer, batch_size=3))
    contexts = ("the cat saw the dog and the cat", "so the dog")
    sums = [log_prob(lm, tokenizer, context, " ran.") for context in contexts]
    likelier = int(sums[1] > sums[0])
    assert metrics["acc"].items[:, 0].tolist() == [likelier, 1 - likelier]
    assert list(metrics) == ["acc"]


def test_the_papers_suite_has_its_benchmarks_with_data_to_download_or_local(text_data):
    assert expand_suites(["paper"]) == [
        "arc_easy",
        "arc_challenge",
        "boolq",
        "hellaswag",
        "openbookqa",
        "piqa",
        "winogrande",
        "mmlu",
    ]
    tasks = load_tasks(expand_suites(["local_piqa", "local_paper"]), text_data)
    names = [task.name for task in tasks]
    expected = [f"local_{name}" for name in expand_suites(["paper"])[:-1]]
    assert sorted(names) == sorted(expected) and names[0] == "local_piqa"


def test_accuracies_are_those_of_plain_log_probabilities(text_data, tiny_lm):
    lm, tokenizer = tiny_lm
    (task,) = load_tasks(["local_arc_easy"], text_data)
    metrics = run_task(task, HarnessLM(lm, tokenizer, batch_size=3))
    lines = (text_data / "arc_easy.jsonl").read_text().splitlines()
    acc, acc_norm = [], []
    for item in map(json.loads, lines):
        sums = np.array(
            [
                log_prob(lm, tokenizer, f"{item['query']}\nAnswer:", f" {choice}")
                for choice in item["choices"]
            ]
        )
        acc.append(float(sums.argmax() == item["gold"]))
        lengths = np.array([len(choice) for choice in item["choices"]])
        acc_norm.append(float((sums / lengths).argmax() == item["gold"]))
    assert metrics["acc"].items[:, 0].tolist() == acc
    assert metrics["acc_norm"].items[:, 0].tolist() == acc_norm


def test_perplexity_of_last_words_is_that_of_plain_log_probabilities(
    text_data, tiny_lm
):
    lm, tokenizer = tiny_lm
    (task,) = load_tasks(["local_lambada"], text_data)
    metrics = run_task(task, HarnessLM(lm, tokenizer, batch_size=4))
    lines = (text_data / "lambada_openai.jsonl").read_text().splitlines()
    expected = [
        log_prob(lm, tokenizer, item["context"], f" {item['continuation']}")
        for item in map(json.loads, lines)
    ]
    assert metrics["perplexity"].score == pytest.approx(
        np.exp(-np.mean(expected)), rel=1e-4
    )


def test_harness_leaves_the_model_as_it_was(tiny_lm):
    lm, tokenizer = tiny_lm
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        before = lm(input_ids=ids).logits
        HarnessLM(lm, tokenizer, batch_size=2)
        assert torch.equal(lm(input_ids=ids).logits, before)


def test_limit_takes_items_at_even_distances(text_data, tiny_lm):
    (task,) = load_tasks(["local_lambada"], text_data)
    harness = HarnessLM(*tiny_lm, batch_size=2)
    everything = run_task(task, harness)["perplexity"].items
    (task,) = load_tasks(["local_lambada"], text_data)
    limited = run_task(task, harness, limit=2)["perplexity"].items
    np.testing.assert_allclose(limited, everything[[0, 3]], rtol=1e-4)


def test_unknown_task_is_named_with_those_there_are(text_data):
    with pytest.raises(ValueError, match="unknown text task helaswag.*hellaswag") as e:
        load_tasks(["local_piqa", "helaswag"], text_data)
    assert "local_blimp" in str(e.value)


def test_local_task_needs_its_data(text_data):
    with pytest.raises(ValueError, match="local_piqa needs --data_dir"):
        load_tasks(["local_piqa"])
    (text_data / "piqa.jsonl").unlink()
    with pytest.raises(ValueError, match="piqa.jsonl: no such file"):
        load_tasks(["local_piqa"], text_data)
    (text_data / "piqa.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no items"):
        load_tasks(["local_piqa"], text_data)


@pytest.mark.parametrize(
    "item, message",
    [
        (
            {"query": "q", "choices": ["a", "b"]},
            "piqa.jsonl:2.*no field gold.*doc_to_target",
        ),
        ({"query": "q", "gold": 0}, "piqa.jsonl:2.*no field choices"),
        ({"query": "q", "choices": ["a", "b"], "gold": 2}, "gold is 2.*one of the 2"),
        ({"query": "q", "choices": ["a", "b"], "gold": 1.0}, "gold is 1.0, expected"),
    ],
)
def test_item_that_lacks_its_target_is_named(text_data, item, message):
    good = {"query": "q", "choices": ["a", "b"], "gold": 0}
    lines = [json.dumps(good), json.dumps(item)]
    (text_data / "piqa.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        load_tasks(["local_piqa"], text_data)


def test_line_that_is_not_json_is_named(text_data):
    (text_data / "piqa.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match="piqa.jsonl:1: not JSON"):
        load_tasks(["local_piqa"], text_data)


def test_line_that_is_not_an_object_is_named(text_data):
    (text_data / "piqa.jsonl").write_text("7\n")
    with pytest.raises(ValueError, match="piqa.jsonl:1: not a JSON object, but 7"):
        load_tasks(["local_piqa"], text_data)


@pytest.mark.parametrize(
    "removed, missing",
    [
        ("doc_to_target", "doc_to_target"),
        ("test_split", "test_split"),
        ("metadata", "metadata.version"),
        ("    test:", "dataset_kwargs.data_files.test"),
    ],
)
def test_task_file_without_a_key_is_an_error(text_data, tmp_path, removed, missing):
    lines = (TASK_DIR / "local_piqa.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(removed)]
    if removed == "metadata":
        kept = [line for line in kept if "version" not in line]
    assert len(kept) < len(lines)
    (tmp_path / "local_mine.yaml").write_text("\n".join(kept))
    with pytest.raises(ValueError, match=f"local_mine.yaml.*lacks {missing}"):
        load_tasks(["local_mine"], text_data, task_dir=tmp_path)


def test_metric_that_is_not_a_mean_over_items_is_an_error(text_data, tmp_path):
    text = (TASK_DIR / "local_piqa.yaml").read_text()
    assert "aggregation: mean" in text
    text = text.replace("aggregation: mean", "aggregation: median")
    (tmp_path / "local_mine.yaml").write_text(text)
    with pytest.raises(ValueError, match="metric acc: the aggregation median is not"):
        load_tasks(["local_mine"], text_data, task_dir=tmp_path)


def test_version_follows_the_data(text_data):
    (before,) = load_tasks(["local_piqa"], text_data)
    with (text_data / "piqa.jsonl").open("a") as file:
        file.write(json.dumps({"query": "q", "choices": ["a", "b"], "gold": 0}) + "\n")
    (after,) = load_tasks(["local_piqa"], text_data)
    assert before.version != after.version
    assert before.version.startswith("1.0-")


def test_suite_is_known_to_the_harness():
    from pathlib import Path

    import lm_eval.tasks

    # the index of these directories alone: that of all takes 20 s
    root = Path(lm_eval.tasks.__file__).parent
    parts = {"arc_easy": "arc", "arc_challenge": "arc", "lambada_openai": "lambada"}
    parts.update(boolq="super_glue/boolq", mmlu="mmlu/default")
    parts["mmlu_continuation"] = "mmlu/continuation"
    directories = {root / parts.get(name, name) for name in DOWNLOADED}
    manager = lm_eval.tasks.TaskManager(
        include_path=list(directories), include_defaults=False
    )
    assert set(DOWNLOADED) <= set(manager.all_tasks)


def test_primary_metric_is_an_accuracy():
    assert primary_metric(["acc", "acc_norm"]) == "acc_norm"
    assert primary_metric(["perplexity", "acc"]) == "acc"
    assert primary_metric(["exact_match,strict-match"]) == "exact_match,strict-match"
    assert primary_metric(["word_perplexity"]) is None
