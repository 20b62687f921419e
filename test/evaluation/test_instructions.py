"""Rules for answers to instructions on speech: right values for each."""

import pytest

from espnet_dus.evaluation.instructions import TASKS, choose, judge, markdown

SAID = "October twenty four, nineteen seventy"


def judged(task, answer, heard="october twenty for nineteen seventy"):
    return judge("m", "utt", task, answer, SAID, heard)


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("OCTOBER TWENTY FOUR NINETEEN SEVENTY.", False),
        ("october twenty four nineteen sixty", False),  # one word of five: 20 %
        ("october twenty four nineteen", False),
        ("october twenty four", True),
        ("october twenty for nineteen", False),  # one error against what was heard
        ("octobre vingt-quatre", True),
        ("", True),
    ],
)
def test_an_answer_near_a_transcript_is_a_transcript(answer, expected):
    assert judged("simplify", answer).not_transcript is expected


def test_the_models_own_bad_transcript_is_a_transcript():
    heard = "no vendor for thirty"
    assert not judged("simplify", "no vendor for thirty", heard).not_transcript
    assert judged("simplify", "no vendor for thirty").not_transcript
    assert judged("simplify", "no vendor", heard="").not_transcript  # heard nothing


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("in in in in", False),
        ("In, in. In! in?", False),
        ("in in in", True),
        ("it was the cat the cat the cat the cat", False),
        ("l-l-l-l", False),
        ("a b c d e f g h " * 4, False),
        ("a b c d e f g h i " * 4, True),  # nine words
        ("into into intoto in", True),
    ],
)
def test_a_phrase_four_times_in_a_row_is_a_loop(answer, expected):
    assert judged("simplify", answer).not_loop is expected


@pytest.mark.parametrize(
    "task, answer, expected",
    [
        ("translate", "le vingt-quatre octobre", True),
        ("translate", "octobre Paris Lyon Metz", True),  # one of four
        ("translate", "octobre Paris Lyon Metz Nice", False),
        ("translate", "the twenty fourth of october", False),
        ("translate", "", False),
        ("simplify", "24 October 1970", True),
        ("simplify", "it was on the twenty fourth of october", False),
        ("summarise", "a birth date", True),
        ("summarise", "a date of birth", False),
        ("spell", "o c t o b e r", True),
        ("spell", "O-C-T.", True),
        ("spell", "october", False),
        ("spell", "o c tober", False),
        ("spell", "it is o-c-t", False),
        ("answer", "Yes.", True),
        ("answer", "yes, october", False),
        ("answer", "yes\nInput: no", False),  # two lines
    ],
)
def test_a_form_is_what_its_task_asks_for(task, answer, expected):
    assert judged(task, answer).in_form is expected


def test_french_that_was_said_is_not_a_translation():
    said = "il est dans la maison"
    assert not judge("m", "utt", "translate", "il est la", said, said).in_form


def test_two_tasks_have_one_right_answer():
    assert judged("spell", "O-c-t-o-b-e-r").right is True
    assert judged("spell", "o c t o b e").right is False
    assert judged("answer", "Yes").right is True
    assert judged("answer", "no").right is False
    assert judge("m", "utt", "answer", "no", "one two", "").right is True
    assert judged("translate", "octobre").right is None


def test_examples_have_the_form_and_the_right_answer_of_their_task():
    for name, task in TASKS.items():
        for said, answer in task.examples:
            own = judge("m", "utt", name, answer, said, said)
            assert own.followed and own.right in (None, True), (name, said)


def test_different_utterances_of_words_are_chosen_at_even_distances():
    said = ("yes", "the", "dog", "and", "cat")
    text = {f"utt{i}": f"{word} the big dog ran" for i, word in enumerate(said)}
    text["utt5"] = "m a r g a r e t"
    text["utt6"] = text["utt3"]
    # in alphabetical order: and, cat, dog, the, yes
    assert choose(text, 5) == ["utt6", "utt4", "utt2", "utt1", "utt0"]
    assert choose(text, 2) == ["utt6", "utt2"]
    with pytest.raises(ValueError, match="^6 different utterances .* there are 5"):
        choose(text, 6)


def test_the_page_has_counts_by_model_and_task_and_all_answers():
    answers = [
        judge("a", "utt1", "spell", "o c t o b e r", SAID, SAID),
        judge("a", "utt1", "translate", "in in in in", SAID, SAID),
        judge("b", "utt1", "spell", "o c t\nI|O", SAID, SAID),
    ]
    page = [
        " ".join(line.split()) for line in markdown(answers, {"utt1": SAID}).split("\n")
    ]
    assert "| a | 2 of 2 | 1 of 2 | 1 of 2 | 1 of 2 | 1 of 1 |" in page
    assert "| b | 1 of 1 | 1 of 1 | 0 of 1 | 0 of 1 | 0 of 1 |" in page
    assert "| spell | a | 1 of 1 | 1 of 1 | 1 of 1 | 1 of 1 | 1 of 1 |" in page
    assert "| translate | a | 1 of 1 | 0 of 1 | 0 of 1 | 0 of 1 | |" in page
    assert f"| {SAID} | spell | b | o c t / I\\|O | |" in page
    assert f"| {SAID} | spell | a | o c t o b e r | yes |" in page
