"""CTC on the output of a layer: its units, made in stage 5, and its head.

The units are `llm` (the base LM's own tokens, those that occur in the training text:
the output is a draft that the LLM can verify as it stands), `bpe` (SentencePiece) or
`char`.
"""

import json
import logging
from pathlib import Path
from typing import Iterable, List, Sequence, Tuple, Union

import torch
from espnet2.asr.ctc import CTC

from espnet_dus.io import atomic_path, write_text

BLANK = 0
UNKNOWN = 1
UNIT_TYPES = ("llm", "bpe", "char")
SPACE = "<space>"


def llm_text(transcript: str) -> str:
    """Give a transcript as the LLM is to write it: behind a space.

    The tokens of a word then do not depend on whether it is the first.
    """
    return f" {transcript}"


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
        """Give the unit ids of a transcript; a unit not in the list is the unknown."""
        return [self.ids.get(p, UNKNOWN) for p in self._pieces(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Give the text of unit ids; blank and unknown have none."""
        pieces = [self.units[i] for i in ids if i not in (BLANK, UNKNOWN)]
        if self.type == "llm":
            return self.tokenizer.convert_tokens_to_string(pieces).strip()
        if self.type == "bpe":
            return self.bpe.decode_pieces(pieces)
        return "".join(pieces).replace(SPACE, " ")

    def _pieces(self, text: str) -> List[str]:
        if self.type == "llm":
            return self.tokenizer.tokenize(llm_text(text))
        if self.type == "bpe":
            return self.bpe.encode_as_pieces(text)
        return [SPACE if c == " " else c for c in text]

    def token_ids(self) -> List[int]:
        """Give the base LM's token of each unit of type `llm`; 0 for blank and unknown.

        Raises:
            ValueError: The units are of another type.
        """
        if self.type != "llm":
            raise ValueError(
                f"ctc_token_type: the units are {self.type!r}, which are no tokens of "
                "the base LM; expected 'llm'"
            )
        tokens = self.tokenizer.convert_tokens_to_ids(self.units[UNKNOWN + 1 :])
        return [0] * (UNKNOWN + 1) + tokens

    @classmethod
    def make(
        cls,
        directory: Union[str, Path],
        unit_type: str,
        texts: Sequence[str],
        tokenizer,
        nbpe: int = 500,
    ) -> "CTCUnits":
        """Make the units of a training text.

        Args:
            directory: Where they are to stand.
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
        if not any(texts):
            raise ValueError("no training text to make CTC units of")
        directory.mkdir(parents=True, exist_ok=True)
        if unit_type == "llm":
            found = {p for text in texts for p in tokenizer.tokenize(llm_text(text))}
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


def _train_sentencepiece(path: Path, texts: Sequence[str], nbpe: int) -> set:
    import sentencepiece

    with atomic_path(path) as temporary, temporary.open("wb") as model_file:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model_file,
                vocab_size=nbpe,
                model_type="unigram",
                character_coverage=1.0,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(
                f"SentencePiece could not make nbpe = {nbpe} units of {len(texts)} "
                f"transcripts; take fewer: {error}"
            ) from error
    model = sentencepiece.SentencePieceProcessor(str(path))
    pieces = range(model.vocab_size())
    return {model.id_to_piece(i) for i in pieces if not model.is_control(i)}


class CTCHead(torch.nn.Module):
    """A norm, if the residual stream needs one, and ESPnet's CTC.

    Behind base layers a few dimensions of the stream are hundreds of times as large as
    the others, so that it is normed. Below them all it is not: the loss then holds the
    stream at the scale of the embeddings, where the base layers can read it and add to
    it. Behind a norm any scale would do, and it grew to a thousand times theirs.

    Args:
        hidden_size: Of the layer it reads (D).
        num_units: Units, the blank included (U).
        has_norm: Whether what it reads is normed.
        dropout_rate: Dropout on what it reads.
    """

    def __init__(
        self,
        hidden_size: int,
        num_units: int,
        has_norm: bool,
        dropout_rate: float = 0.1,
    ):
        super().__init__()
        self.norm = torch.nn.LayerNorm(hidden_size) if has_norm else torch.nn.Identity()
        # not ESPnet's own, which drops in validation too
        self.dropout = torch.nn.Dropout(dropout_rate)
        self.ctc = CTC(num_units, hidden_size, dropout_rate=0.0)

    def forward(
        self,
        x_BSD: torch.Tensor,
        lengths_B: torch.Tensor,
        units_BN: torch.Tensor,
        unit_lengths_B: torch.Tensor,
    ) -> torch.Tensor:
        """Give the CTC loss per unit, a scalar.

        Args:
            x_BSD: (B, S, D) hidden states of the speech positions.
            lengths_B: (B,) their number.
            units_BN: (B, N) unit ids.
            unit_lengths_B: (B,) their number.
        """
        x_BSD = self.dropout(self.norm(x_BSD.float()))
        mean_over_batch = self.ctc(x_BSD, lengths_B, units_BN, unit_lengths_B)
        return mean_over_batch * len(lengths_B) / unit_lengths_B.sum()

    @torch.no_grad()
    def start_at_embeddings(self, units: CTCUnits, lm: torch.nn.Module) -> None:
        """Start the weights of `llm` units at the LLM's embeddings of these tokens.

        What the inserted layers learn from CTC then points where the LLM's own input of
        that token would: the LLM can read it sooner. The blank starts at a space.

        Args:
            units: Of the type `llm`.
            lm: Its input embeddings are read.
        """
        embeddings_VD = lm.get_input_embeddings().weight
        space = units.tokenizer.tokenize(" ")[:1]  # a few tokenizers give none
        tokens = [*space, *units.units[UNKNOWN + 1 :]]
        rows = [*[BLANK] * len(space), *range(UNKNOWN + 1, len(units))]
        ids = units.tokenizer.convert_tokens_to_ids(tokens)
        self.ctc.ctc_lo.weight[rows] = embeddings_VD[ids].float()

    @torch.no_grad()
    def best_units(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """Give the best unit (B, S) of each position of (B, S, D)."""
        return self.ctc.argmax(self.norm(x_BSD.float()))

    @torch.no_grad()
    def greedy(self, x_BSD: torch.Tensor, lengths_B: torch.Tensor) -> List[List[int]]:
        """Give the unit ids of the best path of each utterance."""
        best_BS = self.best_units(x_BSD)
        results = []
        for path, length in zip(best_BS.tolist(), lengths_B.tolist()):
            path = path[:length]
            changes = [u for i, u in enumerate(path) if i == 0 or u != path[i - 1]]
            results.append([unit for unit in changes if unit != BLANK])
        return results


def ctc_layer_index(lm: torch.nn.Module, ctc_layer: str) -> int:
    """Find the layer that the CTC head reads.

    Args:
        lm: The adapted LM.
        ctc_layer: `inserted:K` (the K-th inserted layer from 0; -1: the last) or
            `base:K` (base layer K), for arms that insert none.

    Returns:
        Its place in `lm.model.layers`.

    Raises:
        ValueError: There is no such layer.
    """
    from espnet_dus.model.upscaling import inserted_layers

    inserted = list(inserted_layers(lm))
    base = [i for i in range(len(lm.model.layers)) if i not in inserted]
    family, _, number = ctc_layer.partition(":")
    places = {"inserted": inserted, "base": base}.get(family)
    try:
        return places[int(number)]
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"ctc_layer: {ctc_layer!r} names no layer; expected inserted:K with K "
            f"below {len(inserted)}, or base:K with K below {len(base)} (-1: the last)"
        ) from error


def is_above_base_layer(lm: torch.nn.Module, ctc_layer: str) -> bool:
    """Tell whether `ctc_layer` (see `ctc_layer_index`) stands on a base layer."""
    from espnet_dus.model.upscaling import inserted_layers

    place = ctc_layer_index(lm, ctc_layer)
    return not set(range(place + 1)) <= set(inserted_layers(lm))


def word_errors(
    references: Sequence[str], hypotheses: Sequence[str]
) -> Tuple[int, int]:
    """Count word errors and reference words, for the training log."""
    import jiwer

    pairs = [(r, h) for r, h in zip(references, hypotheses) if r.strip()]
    if not pairs:
        return 0, 0
    out = jiwer.process_words([r for r, _ in pairs], [h for _, h in pairs])
    errors = out.substitutions + out.deletions + out.insertions
    return errors, out.hits + out.substitutions + out.deletions
