"""Evaluation of answers to instructions on speech: tasks, rules and tables.

Table 3 of the paper shows such answers. Here three rules say of each whether the model
followed the instruction at all, and the answers are printed as they are.
"""

import re
from collections import defaultdict
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from espnet_dus.evaluation.text.metric import spread
from espnet_dus.evaluation.text.tables import markdown_table

MAX_WER = 0.25  # below which an answer is a transcript
LOOP = re.compile(r"\b(\w+(?: \w+){0,7})(?: \1){3}\b")
NUM_WORDS = 4  # of three letters or more, in a chosen utterance
RULES = f"""\
Rules, in which words count without case and punctuation:

- not a transcript: the word error rate of the answer, against the true transcript and
  against the model's own, is at least {MAX_WER:.0%}.
- not a loop: no phrase of one to eight words comes four times in a row.
- in form: the answer is one line in the form that its task asks for, see below.
- followed: all three.
- right: the answer is the only right one; of the tasks that have one.

A deaf model can follow an instruction. Only "right" and the answers below tell whether
an answer is about what was said.
"""
# column of a table -> attribute of `Answer`
COLUMNS = {
    "not a transcript": "not_transcript",
    "not a loop": "not_loop",
    "in form": "in_form",
    "followed": "followed",
    "right": "right",
}
# Words that make a text French. "six" and others that are English too are not here.
FRENCH = frozenset(
    "le la les un une des du de et est en au aux il elle ils elles je tu nous vous ce "
    "cette ces que qui dans pas ne sur avec mon ma mes ta tes sa ses se sont ont zéro "
    "deux trois quatre cinq sept huit neuf dix onze douze treize quatorze quinze seize "
    "vingt trente quarante cinquante soixante cent mille janvier février mars avril "
    "mai juin juillet août septembre octobre novembre décembre lundi mardi mercredi "
    "jeudi vendredi samedi dimanche oui non".split()
)
MONTHS = frozenset(
    "january february march april may june july august september october november "
    "december".split()
)


class Task(NamedTuple):
    """An instruction."""

    instruction: str  # what to do with the speech
    examples: Tuple[Tuple[str, str], ...]  # what could be said, and the answer to it
    form: str  # the form of an answer, in words
    in_form: Callable[[str, str], bool]  # whether (answer, true transcript) has it
    # the only right answer to a transcript; None: there are many
    right: Optional[Callable[[str], str]] = None


class Answer(NamedTuple):
    """An answer and what the rules say of it, see `RULES`."""

    model: str
    utterance: str  # its id
    task: str
    text: str  # the answer as it is
    not_transcript: bool
    not_loop: bool
    in_form: bool
    right: Optional[bool]  # None for a task that has no single right answer

    @property
    def followed(self) -> bool:
        """Whether the model did something of the kind that it was asked for."""
        return self.not_transcript and self.not_loop and self.in_form


def words(text: str) -> List[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W_]+", text.casefold())


def _is_french(answer: str, transcript: str) -> bool:
    found, said = words(answer), set(words(transcript))
    french = [word for word in found if word in FRENCH and word not in said]
    return 0 < len(found) <= 4 * len(french)


TASKS: Dict[str, Task] = {
    "translate": Task(
        "Translate it into French.",
        (
            ("good morning everybody", "bonjour tout le monde"),
            ("three nine five four", "trois neuf cinq quatre"),
            ("monday the tenth of may", "lundi dix mai"),
        ),
        "at least a quarter of the words are common French ones that nobody said",
        _is_french,
    ),
    "simplify": Task(
        "Write it in a simpler and shorter way.",
        (
            ("the gentleman purchased an automobile", "he bought a car"),
            ("three nine five four", "3954"),
            ("the tenth of may nineteen ninety", "10 May 1990"),
        ),
        "fewer characters than were said",
        lambda answer, said: 0 < len(answer) < len(said),
    ),
    "summarise": Task(
        "Say in one to three words what it is about.",
        (
            ("the gentleman purchased an automobile", "buying a car"),
            ("three nine five four", "a number"),
            ("the tenth of may nineteen ninety", "a date"),
        ),
        "one to three words",
        lambda answer, _: 1 <= len(answer.split()) <= 3,
    ),
    "spell": Task(
        "Spell the first word.",
        (
            ("good morning everybody", "g o o d"),
            ("three nine five four", "t h r e e"),
            ("monday the tenth of may", "m o n d a y"),
        ),
        "letters with spaces or hyphens between them and nothing else",
        lambda answer, _: bool(re.fullmatch(r"[^\W\d_]([ -][^\W\d_])*", answer)),
        lambda said: " ".join(words(said)[0]),
    ),
    "answer": Task(
        "Is a month mentioned? Answer yes or no.",
        (
            ("good morning everybody", "no"),
            ("monday the tenth of may", "yes"),
            ("three nine five four", "no"),
            ("he was born in june", "yes"),
        ),
        "yes or no",
        lambda answer, _: answer.casefold() in ("yes", "no"),
        lambda said: "no" if MONTHS.isdisjoint(words(said)) else "yes",
    ),
}


def choose(text: Dict[str, str], number: int) -> List[str]:
    """Choose utterances that consist of words rather than of letters.

    Args:
        text: Transcripts by utterance id.
        number: Number of utterances.

    Returns:
        Ids of utterances with at least four words of three letters or more, each of
        another text, at even distances in alphabetical order.

    Raises:
        ValueError: There are fewer.
    """
    by_text = {said: utterance for utterance, said in sorted(text.items())}
    long = [
        utterance
        for said, utterance in sorted(by_text.items())
        if sum(len(word) >= 3 for word in words(said)) >= NUM_WORDS
    ]
    if not 1 <= number <= len(long):
        raise ValueError(
            f"{number} different utterances of at least {NUM_WORDS} words of three "
            f"letters or more are asked for; there are {len(long)}"
        )
    return [long[index] for index in spread(len(long), number)]


def judge(
    model: str, utterance: str, task: str, answer: str, said: str, heard: str
) -> Answer:
    """Apply the rules to an answer.

    Args:
        model: The model.
        utterance: The utterance's id.
        task: A name of `TASKS`.
        answer: The answer.
        said: The true transcript.
        heard: The model's own transcript.
    """
    asked, lines = TASKS[task], answer.strip().splitlines()
    line = lines[0].strip().rstrip(".!") if len(lines) == 1 else ""
    return Answer(
        model,
        utterance,
        task,
        answer,
        not any(_is_same(answer, other) for other in (said, heard)),
        LOOP.search(" ".join(words(answer))) is None,
        bool(line) and asked.in_form(line, said),
        " ".join(words(line)) == asked.right(said) if asked.right else None,
    )


def _is_same(answer: str, transcript: str) -> bool:
    import jiwer

    reference, hypothesis = " ".join(words(transcript)), " ".join(words(answer))
    return bool(reference) and jiwer.wer(reference, hypothesis) < MAX_WER


def markdown(answers: Sequence[Answer], said: Dict[str, str]) -> str:
    """Return the results as a Markdown page.

    Args:
        answers: The answers of all models.
        said: The true transcripts by utterance id.

    Returns:
        The rules, a table of counts with a row for each model, one with a row for each
        model and task, and all answers.
    """
    by_model: Dict[str, List[Answer]] = defaultdict(list)
    for answer in answers:
        by_model[answer.model].append(answer)
    rows = [{"model": model, **_counts(own)} for model, own in by_model.items()]
    by_task = [
        {"task": task, "model": model, **_counts([a for a in own if a.task == task])}
        for task in TASKS
        for model, own in by_model.items()
    ]
    tasks = [
        {
            "task": name,
            "instruction": task.instruction,
            "first example": " -> ".join(task.examples[0]),
            "form": task.form,
        }
        for name, task in TASKS.items()
    ]
    texts = [
        {
            "said": said[answer.utterance],
            "task": answer.task,
            "model": answer.model,
            "answer": _cell(answer.text),
            "followed": "yes" if answer.followed else "",
        }
        for answer in sorted(answers, key=_order)
    ]
    parts = (
        ("# Instructions on speech", markdown_table(rows)),
        ("## Tasks", RULES, markdown_table(tasks)),
        ("## By task", markdown_table(by_task)),
        ("## Answers", markdown_table(texts)),
    )
    return "\n\n".join(text.strip() for part in parts for text in part) + "\n"


def _counts(answers: Sequence[Answer]) -> Dict[str, str]:
    cells = {}
    for column, name in COLUMNS.items():
        values = [getattr(answer, name) for answer in answers]
        known = [value for value in values if value is not None]
        cells[column] = f"{sum(known)} of {len(known)}" if known else ""
    return cells


def _order(answer: Answer) -> Tuple[str, int]:
    return answer.utterance, list(TASKS).index(answer.task)


def _cell(text: str) -> str:
    """Return a text as a cell of a Markdown table."""
    return " / ".join(text.split("\n")).replace("|", "\\|")
