"""Items of each local task."""

import json

import pytest

ITEMS = {
    "lambada_openai": [
        {"context": f"the cat sat on {n} and the", "continuation": word}
        for n in ("one", "two", "three")
        for word in ("dog", "cat")
    ],
    "arc_easy": [
        {
            "query": f"Question: who sat on {n}?",
            "choices": ["the cat", "dog", "mat"],
            "gold": 1,
        }
        for n in ("one", "two", "three", "four")
    ],
    "piqa": [
        {"query": f"Question: {n}\n", "choices": ["go on", "stop"], "gold": 0}
        for n in ("one", "two", "three")
    ],
    "hellaswag_1000": [
        {"query": f"the {n} ran.", "choices": ['it\'s "on"', "no", "yes"], "gold": 2}
        for n in ("cat", "dog")
    ],
    "arc_challenge": [
        {"query": "Question: who ran?", "choices": ["mat", "dog"], "gold": 1},
    ],
    "openbook_qa": [
        {"query": "the dog ran after", "choices": ["the cat", "ten"], "gold": 0},
    ],
    "boolq_1000": [
        {
            "query": "Passage: the cat sat.\nQuestion: did it?",
            "choices": ["no", "yes"],
            "gold": 1,
        },
    ],
    "winogrande": [
        {
            "context_options": ["the cat saw the dog and the cat", "so the dog"],
            "continuation": "ran.",
            "gold": gold,
        }
        for gold in (1, 0)
    ],
    "blimp_60": [
        {"uid": uid, "sentence_good": "the dog ran", "sentence_bad": f"ran the {uid}"}
        for uid in ("dog", "cat", "mat")
    ],
}
TASKS = [f"local_{n}" for n in ("lambada", "arc_easy", "piqa", "hellaswag", "blimp")]


@pytest.fixture
def text_data(tmp_path):
    directory = tmp_path / "text"
    directory.mkdir()
    for name, items in ITEMS.items():
        lines = (json.dumps(item) + "\n" for item in items)
        (directory / f"{name}.jsonl").write_text("".join(lines))
    return directory
