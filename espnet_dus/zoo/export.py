"""A trained model as a Hugging Face directory, in safetensors.

    kind transformer, scope all, and arm full    a plain model of the base LM's type
    arm lora                                     a PEFT adapter
    everything else                              a model of `espnet_dus.hf`

The first two hold the text side only, for runtimes without speech. The third holds the
whole model and loads where `espnet_dus` is installed; with `whole`, it is made instead
of the first.
"""

import copy
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Union

import torch
from espnet2.layers.global_mvn import GlobalMVN

from espnet_dus.data.lengths import sampling_rate, takes_tokens
from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.model.base_lm import plain_config
from espnet_dus.model.build import load_model
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.upscaling import set_num_layers


def export(
    asr_train_config: Union[str, Path],
    asr_model_file: Union[str, Path],
    out_dir: Union[str, Path],
    dtype: str = "float32",
    whole: bool = False,
) -> str:
    """Export a trained model.

    Args:
        asr_train_config: The `config.yaml` of the training.
        asr_model_file: A checkpoint of it.
        out_dir: The directory to create. It appears when it is complete.
        dtype: Precision of the weights: `float32` keeps every value, `bfloat16` halves
            the size.
        whole: Export the speech side too, where it would be a plain model.

    Returns:
        The kind of export: `model`, `adapter` or `espnet_dus`.

    Raises:
        ValueError: `out_dir` exists, the precision is unknown, the frontend is not the
            default one, or `whole` for arm lora.
    """
    out_dir = Path(out_dir)
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype: {dtype!r} is not one of float32, bfloat16")
    if out_dir.exists():
        raise ValueError(f"{out_dir} exists: choose another directory, or move it away")
    model, args = load_model(asr_train_config, asr_model_file)
    model.eval()
    if whole and args.adaptation == "lora":
        raise ValueError("whole: arm lora is exported as an adapter alone; pack it")
    upscaled = getattr(model.lm.config, "depth_up_scaling", None)
    precision = getattr(torch, dtype)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=out_dir.parent, prefix=".exporting-"
    ) as temporary:
        made = Path(temporary) / "model"
        if args.adaptation == "lora":
            what = "adapter"
            _save_adapter(model, made, precision)
        elif not whole and (
            args.adaptation == "full"
            or upscaled
            and (upscaled["kind"], upscaled["scope"]) == ("transformer", "all")
        ):
            what = "model"
            _save_plain(model, made, precision)
        else:
            what = "espnet_dus"
            _save_whole(model, args, made, precision)
        if what != "espnet_dus":
            model.tokenizer.save_pretrained(made)
        made.rename(out_dir)
    logging.info(f"{out_dir}: {what}, {dtype}")
    return what


def _save_plain(model: ESPnetDUSModel, out_dir: Path, dtype: torch.dtype) -> None:
    """Save the LM as a plain model of the base LM's type, with more layers."""
    from transformers import AutoModelForCausalLM

    config = plain_config(model.lm, "depth_up_scaling")
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.lm.state_dict())
    plain.generation_config = model.generation_config
    plain.to(dtype).save_pretrained(out_dir)


def _save_adapter(model: ESPnetDUSModel, out_dir: Path, dtype: torch.dtype) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    # not transformers' save_pretrained of an adapter: it asks the hub whether the
    # vocabulary has grown, to decide whether the embeddings are saved too
    state = get_peft_model_state_dict(model.lm, save_embedding_layers=False)
    weights = {  # PEFT's files name parameters as seen from its own wrapper
        f"base_model.model.{name}": value.to(dtype).contiguous()
        for name, value in state.items()
    }
    config = model.lm.peft_config["default"]
    config.base_model_name_or_path = model.identity.name
    config.revision = model.identity.revision or None
    config.inference_mode = True
    config.save_pretrained(out_dir)
    save_file(weights, out_dir / "adapter_model.safetensors", metadata={"format": "pt"})


def _save_whole(model: ESPnetDUSModel, args, out_dir: Path, dtype: torch.dtype) -> None:
    """Save the whole model and its feature extraction."""
    from espnet_dus.hf import (
        DUSConfig,
        DUSFeatureExtractor,
        DUSForCausalLM,
        DUSProcessor,
    )

    if args.frontend not in (None, "default"):
        raise ValueError(
            f"frontend: {args.frontend}: only models of the default frontend, of "
            "features or of speech tokens can be exported; pack this one (stage 14)"
        )
    upscaled = getattr(model.lm.config, "depth_up_scaling", None)
    text_config = plain_config(model.lm, "depth_up_scaling")
    if upscaled:
        num_added = len(upscaled["positions"])
        set_num_layers(text_config, len(model.lm.model.layers) - num_added)
    frontend, normalize = model.frontend, model.normalize
    size = args.input_size if frontend is None else frontend.output_size()
    tokens = TokenizerInfo.read(args.speech_tokenizer) if takes_tokens(args) else None
    config = DUSConfig(
        text_config=text_config,
        depth_up_scaling=upscaled,
        input_size=size,
        token_vocab_sizes=tokens and tokens.vocab_sizes,
        speech_tokenizer=tokens and tokens.identity,
        speech_embedder_conf=args.speech_embedder_conf,
        prompt_ids=model.prompt_ids,
        prompt_tuning=model.prompt_embeddings is not None,
        ctc_compression=model.compression and vars(model.compression),
        base_lm=asdict(model.identity),
        eos_token_id=model.eos_id,
        pad_token_id=model.eos_id,
    )
    whole = DUSForCausalLM(config)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers())
    whole.load_state_dict({name: tensors[name] for name in whole.state_dict()})
    whole.generation_config = copy.deepcopy(model.generation_config)
    # a greedy transcript, where the pipeline for speech recognition has five beams
    whole.generation_config.num_beams = model.generation_config.num_beams or 1
    whole.to(dtype).save_pretrained(out_dir)

    mean = std = None
    if isinstance(normalize, GlobalMVN):
        mean = normalize.mean if normalize.norm_means else 0 * normalize.mean
        std = normalize.std if normalize.norm_vars else 0 * normalize.std + 1
        mean, std = mean.float().tolist(), std.float().tolist()
    extractor = DUSFeatureExtractor(
        feature_size=size if tokens is None else len(tokens.vocab_sizes),
        sampling_rate=sampling_rate(args),
        frontend_conf=None if frontend is None else args.frontend_conf,
        mean=mean,
        std=std,
        utterance_mvn=(
            args.normalize_conf if args.normalize == "utterance_mvn" else None
        ),
        speech_tokenizer=tokens and tokens.identity,
    )
    if tokens is not None:
        extractor.use_tokenizer(args.speech_tokenizer)
    DUSProcessor(extractor, model.tokenizer).save_pretrained(out_dir)
