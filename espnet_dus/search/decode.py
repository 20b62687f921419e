"""Stage 12: transcribe a data set into ESPnet's result files."""

import logging
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from espnet2.train.dataset import ESPnetDataset

from espnet_dus.data.dataset import check_sampling_rate
from espnet_dus.io import read_scp, write_scp
from espnet_dus.model import Hypothesis
from espnet_dus.search.speech2text import Speech2Text
from espnet_dus.task import sampling_rate


def decode(
    speech2text: Speech2Text,
    data_path_and_name_and_type: Sequence[Tuple[str, str, str]],
    key_file: Optional[str],
    output_dir: str,
    batch_size: int,
) -> None:
    """Transcribe the utterances of a key file.

    Writes `output_dir/1best_recog/{text,token,token_int,score}`. An utterance that
    cannot be read or is too short is reported, gets an empty transcript (so it is
    scored, as deletions) and does not stop the others.

    Args:
        speech2text: The model.
        data_path_and_name_and_type: ESPnet's triple for `speech`.
        key_file: A table whose keys are to be transcribed; None: all of them.
        output_dir: Where the results go.
        batch_size: Utterances at a time.

    Raises:
        ValueError: There is nothing to transcribe, or the sampling rate is wrong.
    """
    keys = list(read_scp(key_file or data_path_and_name_and_type[0][0]))
    if not keys:
        raise ValueError(f"{key_file}: no utterance to decode")
    rate = None  # of audio; features do not tell theirs
    if speech2text.train_args.input_size is None:
        rate = sampling_rate(speech2text.train_args)
        check_sampling_rate(data_path_and_name_and_type, rate)
    dataset = ESPnetDataset(list(data_path_and_name_and_type))
    results: Dict[str, Hypothesis] = {}
    samples = 0
    started = time.perf_counter()
    for first in range(0, len(keys), batch_size):
        speeches = _read(dataset, keys[first : first + batch_size])
        for speech in speeches.values():
            length = 0 if speech is None else len(speech)
            samples += length
            # ESPnet's RTF step reads this line and the one below
            logging.info(f"speech length: {length}")
        results.update(_transcribe(speech2text, speeches))
        for key in speeches:
            logging.info(f"best hypo: {results[key].text} ({key})")
        elapsed = time.perf_counter() - started
        left = elapsed / len(results) * (len(keys) - len(results))
        logging.info(
            f"{len(results)} of {len(keys)} utterances in {elapsed:.0f} s, "
            f"{left:.0f} s left"
        )
    if rate is not None:  # the comparison of arms reads this line
        logging.info(
            f"decoded {len(results)} utterances: {samples / rate:.2f} s of audio in "
            f"{time.perf_counter() - started:.2f} s"
        )
    for field in Hypothesis._fields:
        values = {key: getattr(results[key], field) for key in keys}
        table = {
            key: " ".join(map(str, v)) if isinstance(v, list) else str(v)
            for key, v in values.items()
        }
        write_scp(Path(output_dir) / "1best_recog" / field, table)


def _read(dataset: ESPnetDataset, keys: List[str]) -> Dict[str, Optional[np.ndarray]]:
    """Read utterances; None stands for one that cannot be used."""
    speeches: Dict[str, Optional[np.ndarray]] = {}
    for key in keys:
        try:
            speeches[key] = dataset[key][1]["speech"]
            if not len(speeches[key]) or not np.isfinite(speeches[key]).all():
                raise ValueError("no samples, or NaN or infinite ones")
        except (OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
            logging.error(f"utterance {key} is not decoded: {error}")
            speeches[key] = None
    return speeches


def _transcribe(
    speech2text: Speech2Text, speeches: Dict[str, Optional[np.ndarray]]
) -> Dict[str, Hypothesis]:
    """Transcribe a batch; the utterances that are too short get nothing."""
    results = {key: Hypothesis("", [], [], 0.0) for key in speeches}
    good = [key for key, speech in speeches.items() if speech is not None]
    try:
        if good:
            results.update(zip(good, speech2text([speeches[key] for key in good])))
    except TooShortUttError as error:
        if len(good) == 1:
            logging.error(f"utterance {good[0]} is not decoded: {error}")
        else:
            for key in good:
                results.update(_transcribe(speech2text, {key: speeches[key]}))
    return results
