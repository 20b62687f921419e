"""Cross-entropy of the reference transcripts: finer than word errors on a small set."""

import json
import logging
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple, Union

import torch
from espnet2.utils.types import str2triple_str

from espnet_dus.evaluation.scoring import CROSS_ENTROPY
from espnet_dus.evaluation.text.metric import Metric
from espnet_dus.io import progress, read_scp, write_text
from espnet_dus.model.checkpoint import checkpoint_sha256
from espnet_dus.task import DUSTask


@torch.no_grad()
def cross_entropy(
    asr_train_config: Union[str, Path],
    asr_model_file: Union[str, Path],
    data_path_and_name_and_type: Sequence[str],
    hyp_dir: Union[str, Path],
    device: str = "cpu",
) -> Optional[Metric]:
    """Measure the cross-entropy of a data set's transcripts, given its speech.

    Writes `score_ce/result.json` in `hyp_dir`.

    Args:
        asr_train_config: config.yaml of the training.
        asr_model_file: The checkpoint.
        data_path_and_name_and_type: ESPnet's triples `FILE,text,text`,
            `FILE,speech,TYPE` and, for a model trained with text before the speech,
            `FILE,text_before,text`, in this order.
        hyp_dir: Decoding directory of the data set.
        device: Where to compute.

    Returns:
        Of each utterance the sum in nats and the number of tokens, EOS included; None
        for a model of CTC alone, which predicts no token.
    """
    model, args = DUSTask.build_model_from_file(
        asr_train_config, asr_model_file, device
    )
    model.eval()
    if model.ctc_only:
        logging.info(f"{asr_train_config}: trained by CTC alone, no cross-entropy")
        return None
    args.output_dir = None  # an unreadable utterance is an error
    model.lsm_weight = 0.0  # label smoothing is part of the training only
    triples = [str2triple_str(triple) for triple in data_path_and_name_and_type]
    text = triples[0][0]
    batches = DUSTask.build_streaming_iterator(
        triples,
        preprocess_fn=DUSTask.build_preprocess_fn(args, False),
        collate_fn=DUSTask.build_collate_fn(args, False),
        key_file=text,
        dtype="float32",
        batch_size=1,
        num_workers=0,
    )
    items: Dict[str, Tuple[float, float]] = {}
    total = len(read_scp(text))
    for [key], batch in progress(batches, f"cross-entropy of {text}", total=total):
        tensors = {name: value.to(device) for name, value in batch.items()}
        nats, tokens = model.loss_sums(**tensors)["loss_ce"]
        items[key] = float(nats), float(tokens)
    metric = Metric("mean", list(items.values()))
    checkpoint = checkpoint_sha256(asr_model_file)
    content = {"checkpoint": checkpoint, "utterances": list(items), **metric.to_json()}
    write_text(Path(hyp_dir) / CROSS_ENTROPY, json.dumps(content) + "\n")
    return metric
