"""From shards to batches: utterances measured in LLM positions, then read."""

import logging
import random
from dataclasses import dataclass
from itertools import islice
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from lhotse import CutSet
from lhotse.cut import Cut

from espnet_dus.data.ctc_units import llm_text
from espnet_dus.data.dataset import BadUtterances, DUSPreprocessor
from espnet_dus.data.lengths import LENGTH_MULTIPLE
from espnet_dus.data.shards.augment import Augmentation
from espnet_dus.data.shards.config import StreamingConfig
from espnet_dus.data.shards.mix import Part
from espnet_dus.data.shards.shar import TOKENS

Batch = Tuple[List[str], Dict[str, Any]]


# -- one utterance ---------------------------------------------------------------------


class OutsideLimits(ValueError):
    """An utterance that the limits of `streaming_conf` leave out."""


@dataclass
class SequenceLength:
    """Measures an utterance in LLM positions: speech, prompt, transcript and EOS.

    Attributes:
        preprocessor: Turns a transcript into tokens, as it does for training.
        num_positions: Returns the speech positions of a number of samples; None: cuts
            hold speech tokens, a position for each frame.
        num_prompt_tokens: Tokens between speech and transcript.
        longest: Maximum number of positions of an utterance.
        config: The other limits.
    """

    preprocessor: DUSPreprocessor
    num_positions: Optional[Callable[[int], int]]
    num_prompt_tokens: int
    longest: int
    config: StreamingConfig

    def __call__(self, cut: Cut, recorded: float) -> int:
        """Return the length of a cut.

        Args:
            cut: The utterance, at the speed at which it is trained on.
            recorded: Its duration as it was recorded, in seconds.

        Raises:
            OutsideLimits: It or its transcript is too long or too short.
        """
        config = self.config
        if recorded > config.max_duration:
            raise OutsideLimits(
                f"lasts {recorded:.1f} s, {config.max_duration} are allowed "
                "(streaming_conf: max_duration)"
            )
        text = self.preprocessor.text_cleaner(cut.supervisions[0].text or "")
        tokens = len(self.preprocessor.tokenizer.text2tokens(llm_text(text)))
        if self.num_positions is None:
            positions = cut.tokens.shape[0]
        else:
            positions = self.num_positions(cut.num_samples)
        lowest, highest = config.min_text_rate, config.max_text_rate
        if not lowest <= tokens / cut.duration <= highest:
            raise OutsideLimits(
                f"{tokens} transcript tokens in {cut.duration:.1f} s: {lowest} to "
                f"{highest} a second are allowed (streaming_conf: min_text_rate, "
                "max_text_rate)"
            )
        length = positions + self.num_prompt_tokens + tokens + 1
        length += -length % LENGTH_MULTIPLE
        if length > self.longest:
            raise OutsideLimits(
                f"{length} LLM positions, {self.longest} are allowed (streaming_conf: "
                "max_tokens or batch_sizes)"
            )
        return length


def utterances(
    parts: Sequence[Part],
    length: SequenceLength,
    speed_factors: Sequence[float],
    seed: str,
) -> Iterator[Cut]:
    """Yield the utterances of shards, each with its length as `num_tokens`.

    Utterances outside the limits are left out; the 1st, 10th, 100th, ... is logged.
    Faulty utterances and shards are counted and left out.

    Args:
        parts: What to read, in this order.
        length: Measures an utterance.
        speed_factors: One of these is drawn for each utterance.
        seed: For drawing.
    """
    bad, rng = length.preprocessor.bad_utterances, random.Random(seed)
    num_read = num_outside = 0
    for part in parts:
        for cut in read_part(part, bad):
            num_read += 1
            speed, recorded = rng.choice(speed_factors), cut.duration
            if speed != 1:
                cut = cut.perturb_speed(speed, affix_id=False)
            try:
                cut.num_tokens = length(cut, recorded)
            except OutsideLimits as limit:
                num_outside += 1
                if num_outside == 10 ** (len(str(num_outside)) - 1):
                    logging.warning(
                        f"{num_outside:,} of {num_read:,} utterances are left out, the "
                        f"last is {cut.id}: {limit}"
                    )
                continue
            except ValueError as error:
                _count(bad, cut.id, error)
                continue
            yield cut


def read_part(part: Part, bad: Optional[BadUtterances]) -> Iterator[Cut]:
    """Yield the cuts of a part of a shard, with their audio or tokens in memory.

    A shard that cannot be read is counted in `bad` (None: it is an error).
    """
    count = 0
    try:
        cuts = CutSet.from_shar(fields={k: [p] for k, p in part.shard.items()})
        wanted = part.slice(len(cuts))
        if wanted.start == wanted.stop:
            return
        for cut in islice(cuts, wanted.stop):
            count += 1
            if count > wanted.start:
                yield cut
        if missing := wanted.stop - count:  # zip() ends silently
            raise ValueError(f"{missing} of {len(cuts)} are missing in its tar file")
    except Exception as error:  # of tarfile, gzip, json or lhotse
        _count(bad, f"shard:{part.shard['cuts']}", error)


def _count(
    bad: Optional[BadUtterances], name: str, reason: Union[str, Exception]
) -> None:
    if bad is None:
        raise ValueError(f"{name}: {reason}")
    bad.add(name, reason)


# -- batches ---------------------------------------------------------------------------


@dataclass
class BatchMaker:
    """Turns cuts into a batch of ESPnet's.

    Attributes:
        preprocess: ESPnet's preprocessing, the same as for Kaldi data.
        collate: ESPnet's collation.
        augment: Noise and reverberation.
    """

    preprocess: DUSPreprocessor
    collate: Callable[[List[Tuple[str, Dict[str, Any]]]], Batch]
    augment: Augmentation

    def __call__(self, cuts: CutSet, rng: random.Random) -> Batch:
        """Read the audio or tokens; bad utterances are not in the batch."""
        read = []
        for cut in self.augment(cuts, rng):
            try:
                if cut.has_custom(TOKENS):
                    speech = cut.load_tokens()
                else:
                    speech = cut.load_audio()[0]
            except Exception as error:  # lhotse's backends raise errors of any type
                reason = f"its speech cannot be read: {error!r}"
                _count(self.preprocess.bad_utterances, cut.id, reason)
                continue
            data = {"speech": speech, "text": cut.supervisions[0].text}
            read.append((cut.id, self.preprocess(cut.id, data)))
        return self.collate(read)
