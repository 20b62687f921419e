"""Asks models to follow instructions on the speech of a data directory."""

import json
import logging
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Set, Tuple, Union

from espnet_dus.app.local_models import load
from espnet_dus.data.audio import read_audio
from espnet_dus.data.data_dir import DataDir
from espnet_dus.evaluation.instructions import TASKS, Answer, choose, judge, markdown
from espnet_dus.io import write_text
from espnet_dus.model.adaptation import has_base_lm
from espnet_dus.search.instruction import conversation
from espnet_dus.search.speech2text import Speech2Text

# utterance id, task, answer, the model's own transcript
Given = Tuple[str, str, str, str]


def evaluate(
    models: Sequence[str],
    data_dir: Union[str, Path],
    out_dir: Union[str, Path],
    num_utterances: int = 6,
    max_new_tokens: int = 48,
    base_lm: Optional[str] = None,
    device: str = "cpu",
    dtype: Optional[str] = None,
) -> str:
    """Evaluate models, and the base LM that reads the true transcripts as text.

    Args:
        models: Experiment directories, checkpoints, packs or hub ids.
        data_dir: Data directory with `wav.scp` and `text`.
        out_dir: Directory to write: `instructions.md` and `instructions.json`.
        num_utterances: Number of utterances; see `choose`.
        max_new_tokens: Maximum number of tokens of an answer.
        base_lm: Base LM directory of packs and hub ids; None: it is fetched.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: Precision of the base LM, `float32` or `bfloat16`; None: as in training.

    Returns:
        The page `instructions.md`; see `evaluation.instructions.markdown`.

    Raises:
        ValueError: A model takes features, too few utterances have words, or `load` or
            `Speech2Text.ask` raises it.
        AudioError: See `read_audio`.
    """
    data = DataDir.read(data_dir)
    data.validate()
    data = data.subset(choose(data.tables["text"], num_utterances))
    said = data.tables["text"]
    answers: List[Answer] = []
    references: Set[str] = set()
    for name in models:
        logging.info(f"loading {name}")
        options = dict(device=device, dtype=dtype, search={"no_speech": 0.0})
        speech2text = load(name, base_lm, **options)
        given = {name: _spoken(speech2text, data, max_new_tokens)}
        base = speech2text.model.identity
        if has_base_lm(speech2text.model.lm) and base.sha256 not in references:
            references.add(base.sha256)
            # first: the upper reference
            reference = f"{base.name}, given the transcript"
            given = {reference: _written(speech2text, said, max_new_tokens), **given}
        for model, texts in given.items():
            for utterance, task, text, heard in texts:
                logging.info(f"{model}: {utterance} {task}: {text!r}")
                answers.append(
                    judge(model, utterance, task, text, said[utterance], heard)
                )
    if not references:
        logging.warning(
            "no reference: every model has overwritten its base LM (arm full); name a "
            "model with another adaptation too"
        )
    page = markdown(answers, said)
    content = {
        "data_dir": str(data_dir),
        "max_new_tokens": max_new_tokens,
        "said": said,
        "answers": [answer._asdict() for answer in answers],
    }
    text = json.dumps(content, ensure_ascii=False, indent=1)
    write_text(Path(out_dir, "instructions.json"), f"{text}\n")
    write_text(Path(out_dir, "instructions.md"), page)
    return page


def _spoken(
    speech2text: Speech2Text, data: DataDir, max_new_tokens: int
) -> Iterator[Given]:
    """Yield what a model answers to speech, with its added layers kept."""
    if speech2text.fs is None:
        raise ValueError(f"{data.path} is audio, but this model takes features")
    for utterance in data.utterances():
        speech = read_audio(utterance, speech2text.fs, channel="mean")
        heard = speech2text(speech)[0].text
        for task, asked in TASKS.items():
            text = speech2text.ask(
                speech, asked.instruction, asked.examples, max_new_tokens
            )
            yield utterance.id, task, text, heard


def _written(
    speech2text: Speech2Text, said: dict, max_new_tokens: int
) -> Iterator[Given]:
    """Yield what the base LM answers to the true transcripts."""
    tokenizer = speech2text.model.tokenizer
    for utterance, text in sorted(said.items()):
        for task, asked in TASKS.items():
            messages = conversation(tokenizer, asked.instruction, asked.examples, text)
            answer = speech2text.generate_text(messages, max_new_tokens, "dropped")
            yield utterance, task, answer, text
