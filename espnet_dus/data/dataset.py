"""Utterances on their way from disk to a batch, and the handling of bad ones."""

import logging
from pathlib import Path
from typing import (
    Any,
    Collection,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Tuple,
    Union,
)

import numpy as np
import soundfile
from espnet2.text.hugging_face_tokenizer import HuggingFaceTokenizer
from espnet2.train.collate_fn import CommonCollateFn
from espnet2.train.dataset import AbsDataset
from espnet2.train.preprocessor import CommonPreprocessor

from espnet_dus.data.ctc_units import CTCUnits, llm_text
from espnet_dus.data.speech_tokens.info import TokenizerInfo, check_same_tokenizer


class TooManyBadUtterances(RuntimeError):
    """More utterances are bad than the user allows."""


class BadUtterances:
    """Counts utterances that cannot be used, up to a limit.

    They are listed in a file, so that the processes of a data loader and the ranks of a
    distributed run share one count, and the user can inspect them.

    Args:
        path: The file, with `<utterance id> <reason>` per line.
        limit: Number of distinct utterances that may be left out.
    """

    def __init__(self, path: Path, limit: int):
        self.path = Path(path)
        self.limit = limit

    def add(self, utt_id: str, reason: Union[str, Exception]) -> None:
        """Count an utterance or a shard.

        Raises:
            TooManyBadUtterances: More than `limit` are bad.
        """
        reason = " ".join(str(reason).split())
        known = self._known()
        if utt_id not in known:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{utt_id} {reason}\n")
            known.add(utt_id)
            logging.warning(
                f"utterance {utt_id} is left out ({len(known)} of at most "
                f"{self.limit}): {reason}"
            )
        if len(known) > self.limit:
            raise TooManyBadUtterances(
                f"utterance {utt_id}: {reason}. {len(known)} bad utterance(s), "
                f"{self.limit} are allowed (--max_bad_utterances); see {self.path}"
            )

    def _known(self) -> set:
        if not self.path.is_file():
            return set()
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return {line.split(maxsplit=1)[0] for line in lines if line.strip()}


class TranscriptTokenizer(HuggingFaceTokenizer):
    """ESPnet's tokenizer; special tokens in a transcript are plain text."""

    prompt_tokens = HuggingFaceTokenizer.text2tokens  # in a prompt they are special

    def text2tokens(self, line: str) -> List[str]:
        """Return the tokens of a transcript as `llm_text` writes it."""
        self._build_tokenizer()
        return self.tokenizer.tokenize(line, split_special_tokens=True)


class DUSPreprocessor(CommonPreprocessor):
    """ESPnet's preprocessor; also checks the utterance and adds the CTC units.

    Text before the speech, `text_before`, may hold special tokens of the base LM.

    Args:
        base_lm: Base LM directory, whose tokenizer is used.
        ctc_units: Encode the transcript as `text_ctc`; None: there is no such entry.
        bad_utterances: Counts bad utterances; None: a bad utterance is an error.
        min_length: Fewest samples (or frames) that the speech embedder takes.
        speech_tokenizer: Of speech tokens; None: speech is audio or features.
        kwargs: ESPnet's options.
    """

    def __init__(
        self,
        base_lm: Union[str, Path],
        ctc_units: Optional[CTCUnits] = None,
        bad_utterances: Optional[BadUtterances] = None,
        min_length: int = 1,
        speech_tokenizer: Optional[TokenizerInfo] = None,
        **kwargs: Any,
    ):
        base_lm = str(base_lm)
        super().__init__(
            token_type="hugging_face",
            token_list=base_lm,  # required by ESPnet, not read for this type
            bpemodel=base_lm,
            **kwargs,
        )
        self.tokenizer = TranscriptTokenizer(base_lm)
        self.ctc_units = ctc_units
        self.bad_utterances = bad_utterances
        self.min_length = min_length
        self.speech_tokenizer = speech_tokenizer

    def __call__(self, uid: str, data: Dict[str, Any]) -> Dict[str, np.ndarray]:
        """Process an utterance; a bad one becomes empty, and collation drops it.

        Raises:
            TooManyBadUtterances: It is bad and exceeds the limit.
        """
        try:
            self._check(uid, data)
            if self.speech_tokenizer is not None:
                tokens = token_frames(data[self.speech_name], self.speech_tokenizer)
                data = {**data, self.speech_name: tokens}
        except ValueError as error:
            if self.bad_utterances is None:
                raise
            self.bad_utterances.add(uid, error)
            return {}
        if isinstance(data.get("text_before"), str):
            tokens = self.tokenizer.prompt_tokens(data["text_before"])
            ids = self.token_id_converter.tokens2ids(tokens)
            data = {**data, "text_before": np.array(ids, dtype=np.int64)}
        if isinstance(data.get(self.text_name), str):
            text = self.text_cleaner(data[self.text_name])
            data = {**data, self.text_name: llm_text(text)}
            if self.ctc_units is not None:
                units = self.ctc_units.encode(text)
                data["text_ctc"] = np.array(units, dtype=np.int64)
        return super().__call__(uid, data)

    def _check(self, uid: str, data: Dict[str, Any]) -> None:
        speech = data[self.speech_name]
        if len(speech) < self.min_length:
            raise ValueError(
                f"utterance {uid}: {len(speech)} samples or frames, the subsampling "
                f"needs {self.min_length}; raise --min_wav_duration (stage 4)"
            )
        if not np.isfinite(speech).all():
            raise ValueError(f"utterance {uid}: NaN or infinite values in the speech")
        text = data.get(self.text_name)
        if isinstance(text, str) and not text.strip():
            raise ValueError(f"utterance {uid}: the transcript is empty")


def token_frames(vector: np.ndarray, info: TokenizerInfo) -> np.ndarray:
    """Shape speech tokens as stage 3 stores them, (frames * streams,), into frames.

    Args:
        vector: Integers, frame by frame; (frames, streams) is taken too.
        info: The tokenizer that they were made with.

    Returns:
        int64 (frames, streams).

    Raises:
        ValueError: They are not integers, do not fill frames, or one is not a token of
            its stream.
    """
    if vector.dtype.kind != "i":
        raise ValueError(
            f"expected speech tokens (--feats_type tokens), got {vector.dtype} values "
            "as of audio or features"
        )
    if vector.size % info.streams:
        raise ValueError(
            f"{vector.size} speech tokens do not fill frames of {info.streams} "
            f"streams; were they made with another tokenizer?"
        )
    tokens_FK = vector.reshape(-1, info.streams).astype(np.int64)
    outside_FK = (tokens_FK < 0) | (tokens_FK >= np.array(info.vocab_sizes))
    if outside_FK.any():
        frame, stream = np.argwhere(outside_FK)[0]
        raise ValueError(
            f"speech token {tokens_FK[frame, stream]} in frame {frame}, stream "
            f"{stream}: the tokenizer {info.name} has tokens from 0 to "
            f"{info.vocab_sizes[stream] - 1} there; were the data made with another "
            "one (stage 3)?"
        )
    return tokens_FK


def check_speech_tokenizer(
    path_name_type_list: Collection[Tuple[str, str, str]], info: TokenizerInfo
) -> None:
    """Check that speech tokens were made with the tokenizer that a model takes.

    Stage 3 records it in the file `tokenizer` beside feats.scp; data without that file
    pass, and their tokens are checked one by one.

    Args:
        path_name_type_list: ESPnet's triples.
        info: The model's tokenizer.

    Raises:
        RuntimeError: They were made with another one; both are named.
    """
    for path, name, _ in path_name_type_list:
        record = Path(path).with_name("tokenizer")
        if name == "speech" and record.is_file():
            found, sha256 = record.read_text("utf-8").split()
            check_same_tokenizer({"name": found, "sha256": sha256}, info, path)


def check_sampling_rate(
    path_name_type_list: Collection[Tuple[str, str, str]], fs: int
) -> None:
    """Check that audio has the sampling rate of the model.

    The first file represents all of them: ESPnet's reader refuses mixed rates.

    Args:
        path_name_type_list: ESPnet's triples; types other than `sound` are skipped.
        fs: The expected sampling rate (Hz).

    Raises:
        ValueError: The rate differs.
    """
    for path, _, data_type in path_name_type_list:
        if data_type != "sound":
            continue
        with open(path, encoding="utf-8") as lines:
            utt_id, audio = next(lines).split(maxsplit=1)
        try:
            rate = soundfile.info(audio.strip()).samplerate
        except (OSError, RuntimeError):
            continue  # the fault is reported when the file is read
        if rate != fs:
            raise ValueError(
                f"utterance {utt_id}: {audio.strip()} has a sampling rate of {rate} "
                f"Hz, expected {fs}; stage 3 converts audio (--fs)"
            )


class FaultTolerantDataset(AbsDataset):
    """ESPnet's dataset; an unreadable utterance becomes an empty one.

    Args:
        dataset: ESPnet's dataset.
        bad_utterances: Counts unreadable utterances.
    """

    def __init__(self, dataset: AbsDataset, bad_utterances: BadUtterances):
        self.dataset = dataset
        self.bad_utterances = bad_utterances

    def has_name(self, name: str) -> bool:
        """Return whether there is data of a name."""
        return self.dataset.has_name(name)

    def names(self) -> Tuple[str, ...]:
        """Return the names of the data."""
        return self.dataset.names()

    def __repr__(self) -> str:
        return repr(self.dataset)

    def __getitem__(self, uid: str) -> Tuple[str, Dict[str, Any]]:
        try:
            return self.dataset[uid]
        except TooManyBadUtterances:
            raise
        except (OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
            self.bad_utterances.add(uid, error)
            return uid, {}


class DUSCollateFn(CommonCollateFn):
    """ESPnet's collation, without the bad utterances."""

    def __init__(self):
        super().__init__(float_pad_value=0.0, int_pad_value=-1)

    def __call__(
        self, data: Collection[Tuple[str, Dict[str, np.ndarray]]]
    ) -> Tuple[List[str], Dict[str, Any]]:
        """Return ids and padded tensors; both are empty if every utterance is bad."""
        good = [(uid, utterance) for uid, utterance in data if utterance]
        return super().__call__(good) if good else ([], {})


class NonEmptyBatches:
    """An iterator over the batches that hold at least one utterance."""

    def __init__(self, batches: Iterable):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tuple[List[str], Dict[str, Any]]]:
        return (batch for batch in self.batches if batch[0])
