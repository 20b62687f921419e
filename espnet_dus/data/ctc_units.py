"""Transcripts as tokens of the base LM and as CTC units, which stage 5 makes.

The units are `llm` (the base LM's own tokens that occur in the training text, so that
the CTC output is a draft that the LLM can verify), `bpe` (SentencePiece) or `char`.
"""

import itertools
import json
import logging
from pathlib import Path
from typing import Iterable, Iterator, List, Union

from espnet_dus.io import atomic_path, write_text

BLANK = 0

UNKNOWN = 1

UNIT_TYPES = ("llm", "bpe", "char")

SPACE = "<space>"


def llm_text(transcript: str) -> str:
    """Return a transcript as the LLM writes it: after a space.

    The tokens of a word then do not depend on whether it is the first.
    """
    return f" {transcript}"


def transcript_tokens(tokenizer, transcript: str) -> List[str]:
    """Return the base LM's tokens of a transcript.

    A special token in it, such as `<|im_end|>`, is plain text: taken as a token, it
    would end the transcript there.
    """
    return tokenizer.tokenize(llm_text(transcript), split_special_tokens=True)


def report_special_tokens(texts: Iterable[str], tokenizer) -> Iterator[str]:
    """Pass transcripts on; at the end, say how many hold special tokens of the LM."""
    special = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special
    }
    total, examples, found = 0, [], set()
    for total, text in enumerate(texts, 1):
        if held := {token for token in special if token in text}:
            examples.append(text)
            found |= held
        yield text
    if examples:
        logging.warning(
            f"{len(examples)} of {total} transcripts hold special tokens of the base "
            f"LM ({', '.join(sorted(found))}), the first '{examples[0]}': they are "
            "taken as plain text"
        )


class CTCUnits:
    """A list of CTC units and the way from a transcript to their ids and back.

    A directory holds `units.json` (type and units; id 0 is the blank, id 1 the unknown)
    and, for `bpe`, `bpe.model`.

    Args:
        directory: Made by `CTCUnits.make`.
        tokenizer: The base LM's tokenizer; `llm` units need it.

    Raises:
        ValueError: The directory holds no units.
    """

    def __init__(self, directory: Union[str, Path], tokenizer=None):
        path = Path(directory) / "units.json"
        if not path.is_file():
            raise ValueError(f"ctc_units: {path} is missing; stage 5 makes it")
        content = json.loads(path.read_text("utf-8"))
        self.type: str = content["type"]
        self.units: List[str] = content["units"]
        self.ids = {unit: i for i, unit in enumerate(self.units)}
        self.tokenizer = tokenizer
        if self.type == "bpe":
            from sentencepiece import SentencePieceProcessor

            self.bpe = SentencePieceProcessor(str(Path(directory) / "bpe.model"))

    def __len__(self) -> int:
        return len(self.units)

    def encode(self, text: str) -> List[int]:
        """Return the unit ids of a transcript; units not in the list become unknown."""
        return [self.ids.get(p, UNKNOWN) for p in self._pieces(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of unit ids; blank and unknown have none."""
        pieces = [self.units[i] for i in ids if i not in (BLANK, UNKNOWN)]
        if self.type == "llm":
            return self.tokenizer.convert_tokens_to_string(pieces).strip()
        if self.type == "bpe":
            return self.bpe.decode_pieces(pieces)
        return "".join(pieces).replace(SPACE, " ")

    def _pieces(self, text: str) -> List[str]:
        if self.type == "llm":
            return transcript_tokens(self.tokenizer, text)
        if self.type == "bpe":
            return self.bpe.encode_as_pieces(text)
        return [SPACE if c == " " else c for c in text]

    def token_ids(self) -> List[int]:
        """Return the base LM's token of each `llm` unit; 0 for blank and unknown.

        Raises:
            ValueError: The units are of another type.
        """
        if self.type != "llm":
            raise ValueError(
                f"ctc_token_type: the units are {self.type!r}, not tokens of the "
                "base LM; expected 'llm'"
            )
        tokens = self.tokenizer.convert_tokens_to_ids(self.units[UNKNOWN + 1 :])
        return [0] * (UNKNOWN + 1) + tokens

    @classmethod
    def make(
        cls,
        directory: Union[str, Path],
        unit_type: str,
        texts: Iterable[str],
        tokenizer,
        nbpe: int = 500,
    ) -> "CTCUnits":
        """Make the units of a training text.

        Args:
            directory: The directory to write.
            unit_type: `llm`, `bpe` or `char`.
            texts: The training transcripts.
            tokenizer: The base LM's.
            nbpe: Number of SentencePiece units.

        Raises:
            ValueError: An unknown type, no text, or a text too small for `nbpe`.
        """
        directory = Path(directory)
        if unit_type not in UNIT_TYPES:
            raise ValueError(
                f"ctc_token_type: {unit_type!r} is not one of {', '.join(UNIT_TYPES)}"
            )
        texts = iter(texts)
        first = next(filter(None, texts), None)
        if first is None:
            raise ValueError("no training text to make CTC units from")
        texts = itertools.chain([first], texts)
        directory.mkdir(parents=True, exist_ok=True)
        if unit_type == "llm":
            found = {p for text in texts for p in transcript_tokens(tokenizer, text)}
        elif unit_type == "bpe":
            found = _train_sentencepiece(directory / "bpe.model", texts, nbpe)
        else:
            found = {SPACE if c == " " else c for text in texts for c in text}
        units = ["<blank>", "<unk>"] + sorted(found - {"<unk>"})
        content = {"type": unit_type, "units": units}
        text = json.dumps(content, ensure_ascii=False, indent=0)
        write_text(directory / "units.json", text + "\n")
        logging.info(f"{directory}: {len(units)} CTC units of type {unit_type}")
        return cls(directory, tokenizer)


def _train_sentencepiece(path: Path, texts: Iterator[str], nbpe: int) -> set:
    import sentencepiece

    with atomic_path(path) as temporary, temporary.open("wb") as model_file:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=texts,
                model_writer=model_file,
                vocab_size=nbpe,
                model_type="unigram",
                character_coverage=1.0,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(
                f"SentencePiece could not make nbpe = {nbpe} units from the training "
                f"text; choose fewer: {error}"
            ) from error
    model = sentencepiece.SentencePieceProcessor(str(path))
    pieces = range(model.vocab_size())
    return {model.id_to_piece(i) for i in pieces if not model.is_control(i)}
