"""A trained model as one Python object: waveforms in, transcripts out."""

import functools
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from transformers.generation.streamers import BaseStreamer

from espnet_dus.data.lengths import (
    FRAMES_PER_SECOND,
    min_length,
    position_times,
    sampling_rate,
    takes_tokens,
)
from espnet_dus.data.speech_tokens.tokenizer import (
    SpeechTokenizer,
    Tokens,
    load_tokenizer,
)
from espnet_dus.data.waveform import Channel, as_waveform
from espnet_dus.io import file_sha256
from espnet_dus.model.base_lm import resolve_dtype
from espnet_dus.model.build import load_model
from espnet_dus.model.checkpoint import checkpoint_sha256
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.speech_lm import Encoded, TextBefore
from espnet_dus.model.upscaling import inserted_layers
from espnet_dus.search.beam import beam_search
from espnet_dus.search.config import Search, SearchConfig
from espnet_dus.search.encoding import check_ctc_head, encode
from espnet_dus.search.greedy import greedy_search
from espnet_dus.search.guards import has_speech
from espnet_dus.search.instruction import Example, around_speech, chat_text
from espnet_dus.search.long_audio import LongResult, batches, in_recording
from espnet_dus.search.result import Hypothesis, nothing
from espnet_dus.search.segmentation import segments
from espnet_dus.search.timing import word_times

Speech = Union[np.ndarray, torch.Tensor, Tokens]


class Speech2Text:
    """Transcribes speech with a trained model, answers about it, and chats.

    Args:
        asr_train_config: The `config.yaml` of the training.
        asr_model_file: A checkpoint, such as `valid.acc.ave.pth`.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: Precision of the base LM: `float32` or `bfloat16`; None: as in training.
        search: A `SearchConfig`, or a dict of its fields; None: greedy.

    Attributes:
        search: The `SearchConfig`; it may be replaced at any time.
        fs: Sampling rate of the audio in Hz; None if the model takes features.

    Raises:
        ValueError: An option is unknown or does not fit the model.

    Examples:
        >>> speech2text = Speech2Text("exp/dus_x/config.yaml", "exp/dus_x/latest.pth")
        >>> speech, rate = soundfile.read("speech.wav")
        >>> text, token, token_int, score, *_ = speech2text(speech)[0]
        >>> speech2text.generate_text("What is a depth up-scaled LLM?")
    """

    def __init__(
        self,
        asr_train_config: Union[str, Path],
        asr_model_file: Union[str, Path],
        device: str = "cpu",
        dtype: Optional[str] = None,
        search: Search = None,
    ):
        self.search = SearchConfig.make(search)
        self.model, self.train_args = load_model(
            asr_train_config, asr_model_file, device
        )
        self.model.eval()
        if dtype is not None:
            _set_precision(self.model, dtype)
        self.device = device
        self.origin = {
            "train_config": file_sha256(asr_train_config),
            "checkpoint": checkpoint_sha256(asr_model_file),
            "dtype": dtype,
        }
        self.min_length = min_length(self.train_args)
        self.positions = position_times(self.train_args)
        self.fs: Optional[int] = None
        if self.train_args.input_size is None:
            self.fs = sampling_rate(self.train_args)
        if self.needs_ctc:
            check_ctc_head(self.model)

    @functools.cached_property
    def speech_tokenizer(self) -> Optional[SpeechTokenizer]:
        """Turns audio into tokens, if the model takes tokens; or None.

        Loaded with the first audio: stage 12 decodes tokens, and the encoder of OpusLM
        is larger than a small base LM.
        """
        if not takes_tokens(self.train_args):
            return None
        return load_tokenizer(self.train_args.speech_tokenizer, self.device)

    @property
    def run(self) -> Dict[str, Any]:
        """Return what determines the results, apart from the audio."""
        return {**self.origin, "search": asdict(self.search)}

    @property
    def needs_ctc(self) -> bool:
        """Return whether the search uses the CTC head."""
        search = self.search
        return search.draft or search.ctc_weight > 0 or search.word_times

    @staticmethod
    def from_pretrained(
        model_tag: Union[str, Path],
        base_lm: Optional[Union[str, Path]] = None,
        **kwargs: Any,
    ) -> "Speech2Text":
        """Load a published model: see `espnet_dus.zoo.download.download`.

        Args:
            model_tag: A pack (`.zip`), the URL of one, or `user/name[@revision]` on the
                Hugging Face hub.
            base_lm: The base LM's directory; None: it is fetched once.
            kwargs: The other options of this class.

        Returns:
            The model.

        Raises:
            ValueError: The pack is damaged or was tampered with, or it belongs to
                another base LM.
            RuntimeError: Something could not be fetched, or the checkpoint does not fit
                the configuration.

        Examples:
            >>> speech2text = Speech2Text.from_pretrained("user/name", device="cuda")
        """
        from espnet_dus.zoo.download import download

        return Speech2Text(**download(model_tag, base_lm), **kwargs)

    def __call__(
        self,
        speech: Union[Speech, Sequence[Speech]],
        prompt: Union[str, Sequence[str], None] = None,
    ) -> List[Hypothesis]:
        """Transcribe one utterance, or a batch.

        Args:
            speech: Samples at the training data's rate, in any form that `as_waveform`
                takes; existing `Tokens`, if the model takes speech tokens; features
                (F, M), if it was trained on features. Or a list of these.
            prompt: Text before the speech, for a model trained with it; for a list one
                prompt for each.

        Returns:
            For one utterance: its n-best hypotheses, the best first. For a list: the
            best hypothesis of each.

        Raises:
            AudioError: See `as_waveform`.
            TooShortUttError: An utterance is too short for the subsampling.
        """
        is_list = isinstance(speech, (list, tuple))
        if is_list and not np.isscalar(next(iter(speech), None)):
            return [hypotheses[0] for hypotheses in self.nbest(speech, prompt)]
        return self.nbest([speech], None if prompt is None else [prompt])[0]

    @torch.inference_mode()
    def nbest(
        self, speeches: Sequence[Speech], prompts: Optional[Sequence[str]] = None
    ) -> List[List[Hypothesis]]:
        """Transcribe a batch.

        Args:
            speeches: A list as in `__call__`.
            prompts: Text before each of them, or None.

        Returns:
            The n-best hypotheses of each utterance: `nbest` of them, or all that the
            search found.

        Raises:
            AudioError: See `as_waveform`.
            TooShortUttError: An utterance is too short for the subsampling.
            ValueError: There is not one prompt for each utterance.
        """
        if prompts is not None and len(prompts) != len(speeches):
            raise ValueError(f"{len(prompts)} prompts for {len(speeches)} utterances")
        batch = [self._checked(speech) for speech in speeches]
        results = [[nothing("no_speech")] for _ in batch]
        spoken = [i for i, speech in enumerate(batch) if self._is_spoken(speech)]
        if not spoken:
            return results
        batch = self._tokenized([batch[i] for i in spoken])
        before = None
        if prompts is not None:
            before = self._before([prompts[i] for i in spoken])
        encoded = self._encoded(batch, self.needs_ctc, before)
        num_positions = encoded.read_B + len(self.model.prompt_ids)
        if before is not None:
            num_positions = num_positions + before[1]
        self._warn_beyond_context(int(num_positions.max()))
        if self.search.beam_size > 1:
            found = beam_search(self.model, encoded, self.search)
        else:
            best = greedy_search(self.model, encoded, self.search)
            found = [[hypothesis] for hypothesis in best]
        for n, (i, hypotheses) in enumerate(zip(spoken, found)):
            if self.search.word_times:
                ctc_SU = encoded.ctc_BSU[n, : encoded.lengths_B[n]]
                hypotheses = [self._timed(h, ctc_SU, batch[n]) for h in hypotheses]
            results[i] = hypotheses
        return results

    def _encoded(
        self,
        batch: Sequence[Speech],
        with_ctc: bool,
        before: Optional[TextBefore] = None,
    ) -> Encoded:
        lengths = torch.tensor([len(s) for s in batch], device=self.device)
        padded = torch.nn.utils.rnn.pad_sequence(
            [_tensor(speech) for speech in batch], batch_first=True
        )
        return encode(self.model, padded.to(self.device), lengths, with_ctc, before)

    def _before(self, prompts: Sequence[str]) -> TextBefore:
        ids = [self._ids(prompt)[0] for prompt in prompts]
        lengths_B = torch.tensor([len(i) for i in ids], device=self.device)
        padded_BN = torch.nn.utils.rnn.pad_sequence(
            ids, batch_first=True, padding_value=-1
        )
        return padded_BN, lengths_B

    def _warn_beyond_context(self, num_positions: int) -> None:
        """Warn where speech and text are longer than the base LM's context."""
        context = self.model.lm.config.max_position_embeddings
        if num_positions > context:
            logging.warning(
                f"the speech (with the prompt) has {num_positions} positions, but the "
                f"base LM's context is {context}: expect a bad transcript; cut "
                "recordings into shorter segments (--segment_seconds)"
            )

    def _checked(self, speech: Speech) -> Speech:
        if not isinstance(speech, Tokens) and self.fs is not None:
            speech = as_waveform(speech)
        elif isinstance(speech, Tokens) and not takes_tokens(self.train_args):
            raise ValueError("speech tokens, but this model takes audio or features")
        elif not isinstance(speech, Tokens):
            speech = torch.as_tensor(speech).to("cpu", torch.float32)
            if not speech.isfinite().all():
                raise ValueError("the features have NaN or infinite values")
        self.check_length(speech)
        return speech

    def _tokenized(self, batch: List[Speech]) -> List[Speech]:
        """Turn the waveforms of a batch into tokens, if the model takes tokens."""
        waveforms = [speech for speech in batch if not isinstance(speech, Tokens)]
        if not waveforms or self.speech_tokenizer is None:
            return batch
        made = iter(self.speech_tokenizer.tokenize(waveforms))
        return [s if isinstance(s, Tokens) else next(made) for s in batch]

    def _timed(
        self, hypothesis: Hypothesis, ctc_SU: torch.Tensor, speech: Speech
    ) -> Hypothesis:
        if isinstance(speech, Tokens):
            seconds = speech.num_frames * self.positions.step
            if speech.run_lengths_F is not None:  # a position for each frame again
                runs_S = torch.from_numpy(speech.run_lengths_F).to(ctc_SU.device)
                ctc_SU = ctc_SU.repeat_interleave(runs_S, dim=0)
        else:
            seconds = len(speech) / (self.fs or FRAMES_PER_SECOND)
        times = word_times(
            ctc_SU, hypothesis.text, self.model.ctc_units, self.positions, seconds
        )
        return hypothesis._replace(word_times=times)

    def transcribe_long(
        self,
        path: Union[str, Path],
        max_seconds: float = 20.0,
        batch_size: float = 60.0,
        transcribe: Optional[Callable[[List[np.ndarray]], List[Hypothesis]]] = None,
        channel: Channel = "mean",
    ) -> Iterator[LongResult]:
        """Transcribe a recording of any length, segment by segment.

        Args:
            path: Any audio file that libsndfile reads.
            max_seconds: Maximum duration of a segment.
            batch_size: Seconds of segments in a batch, padding included.
            transcribe: Transcribes a batch of waveforms; None: this object.
            channel: The channel to take (from 0), or `mean` for the mean of all.

        Yields:
            Each segment's start and end, and its hypothesis, whose word times count
            from the start of the recording. `long_audio.join_segments` joins them to
            one transcript. Segments too short for one speech position are skipped.

        Raises:
            ValueError: The model takes features, or `segments` raises it.
            AudioError: See `open_audio`.
        """
        if self.fs is None:
            raise ValueError("long recordings are audio, but this model takes features")
        long_enough = (
            segment
            for segment in segments(path, self.fs, max_seconds, channel)
            if len(segment.samples) >= self.min_length
        )
        for batch in batches(long_enough, batch_size):
            found = (transcribe or self)([segment.samples for segment in batch])
            for segment, hypothesis in zip(batch, found):
                yield in_recording(segment, hypothesis)

    def check_length(self, speech: Speech) -> None:
        """Check that an utterance gives at least one speech position.

        Raises:
            TooShortUttError: It does not.
        """
        if len(speech) < self.min_length:
            raise TooShortUttError(
                f"has {len(speech)} samples or frames, expected at least "
                f"{self.min_length}",
                len(speech),
                self.min_length,
            )

    def _is_spoken(self, speech: Speech) -> bool:
        is_audio = self.fs is not None and not isinstance(speech, Tokens)
        if not self.search.no_speech or not is_audio:
            return True
        return has_speech(torch.from_numpy(speech), self.fs, self.search.no_speech)

    def ask(
        self,
        speech: Speech,
        instruction: str,
        examples: Sequence[Example] = (),
        max_new_tokens: int = 128,
        streamer: Optional[BaseStreamer] = None,
    ) -> str:
        """Follow an instruction on speech, greedily and with the added layers.

        Args:
            speech: One utterance, as in `__call__`.
            instruction: What to do with it, such as "Translate it into French."
            examples: A text and the answer to it, for each.
            max_new_tokens: Maximum number of tokens.
            streamer: Gets the tokens as they are generated.

        Returns:
            The answer.

        Raises:
            AudioError: See `as_waveform`.
            TooShortUttError: The utterance is too short for the subsampling.
            ValueError: The audio has no speech, or see `around_speech`.

        Examples:
            >>> speech2text.ask(speech, "Translate it into French.", [("yes", "oui")])
        """
        texts = around_speech(self.model.tokenizer, instruction, examples)
        speech = self._checked(speech)
        if not self._is_spoken(speech):
            raise ValueError("nobody speaks in the audio (no_speech 0: answer anyway)")
        before, behind = map(self._ids, texts)
        encoded = self._encoded(self._tokenized([speech]), False)
        num_text = before.size(1) + behind.size(1)
        self._warn_beyond_context(int(encoded.read_B) + num_text)
        generated = self.model.generate_answer(
            encoded,
            before,
            behind,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            streamer=streamer,
        )
        return self._text(generated[0])

    def generate_text(
        self,
        prompt: Union[str, Sequence[Tuple[str, str]]],
        max_new_tokens: int = 128,
        added_layers: str = "auto",
        streamer: Optional[BaseStreamer] = None,
        drop_added_layers: bool = False,
    ) -> str:
        """Answer a prompt in text, greedily and without speech.

        Args:
            prompt: What the user says, or role and content of each message of a chat.
                It goes through the tokenizer's chat template if there is one; otherwise
                it is continued as it is, one message a line.
            max_new_tokens: Maximum number of tokens.
            added_layers: See `SpeechLM.generate_text`; by default the answer is the
                base LM's.
            streamer: Gets the tokens of the prompt, then those of the answer.
            drop_added_layers: The same as `added_layers="dropped"`.

        Raises:
            ValueError: The prompt is empty or longer than the base LM's context.
        """
        tokenizer = self.model.tokenizer
        messages = [("user", prompt)] if isinstance(prompt, str) else prompt
        ids = self._ids(chat_text(tokenizer, messages))
        context = self.model.lm.config.max_position_embeddings
        if not 0 < ids.size(1) < context:
            raise ValueError(
                f"the prompt has {ids.size(1)} tokens, expected 1 to {context - 1} "
                "(the base LM's context, with an answer)"
            )
        generated = self.model.generate_text(
            ids,
            "dropped" if drop_added_layers else added_layers,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            streamer=streamer,
        )
        return self._text(generated[0, ids.size(1) :])

    def _ids(self, text: str) -> torch.Tensor:
        ids = self.model.tokenizer(text, add_special_tokens=False).input_ids
        return torch.tensor([ids], device=self.device)

    def _text(self, ids: torch.Tensor) -> str:
        return self.model.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _set_precision(model: ESPnetDUSModel, dtype: str) -> None:
    """Convert the base LM to a precision; the added layers stay in float32."""
    model.compute_dtype = resolve_dtype(dtype)
    added = {id(p) for x in inserted_layers(model.lm).values() for p in x.parameters()}
    for parameter in model.lm.parameters():
        if id(parameter) not in added:
            parameter.data = parameter.data.to(model.compute_dtype)


def _tensor(speech: Speech) -> torch.Tensor:
    if isinstance(speech, Tokens):
        return torch.from_numpy(speech.tokens_FK.astype(np.int64))
    return torch.as_tensor(speech)
