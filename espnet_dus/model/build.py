"""Building the model from the options of a training."""

import argparse
import inspect
import json
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import torch
from espnet2.asr.specaug.specaug import SpecAug
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN
from espnet2.torch_utils.safe_torch_load import safe_torch_load
from espnet2.train.class_choices import ClassChoices
from espnet2.utils.get_default_kwargs import get_default_kwargs

from espnet_dus.data.ctc_units import CTCUnits
from espnet_dus.data.lengths import takes_tokens, tokenizer_info
from espnet_dus.data.speech_tokens.info import TokenizerInfo, check_same_tokenizer
from espnet_dus.io import check_names, read_yaml
from espnet_dus.model.adaptation import adapt
from espnet_dus.model.base_lm import LOCAL_DATA, embedding_rms, load_base_lm
from espnet_dus.model.checkpoint import record_identity
from espnet_dus.model.ctc_head import CTCHead
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.model.features import FeatureModel, FrontendChoices, freeze_pretrained
from espnet_dus.model.speech_embedder import SpeechEmbedder
from espnet_dus.model.token_embedder import TokenEmbedder
from espnet_dus.model.upscaling import is_above_base_layer

frontend_choices = FrontendChoices()
specaug_choices = ClassChoices("specaug", {"specaug": SpecAug}, optional=True)
normalize_choices = ClassChoices(
    "normalize",
    {"global_mvn": GlobalMVN, "utterance_mvn": UtteranceMVN},
    default="utterance_mvn",
    optional=True,
)


def build_model(args: argparse.Namespace) -> torch.nn.Module:
    """Build the model; for collecting statistics, the frontend alone.

    Raises:
        ValueError: Options that do not fit; the message names them.
    """
    frontend, input_size = None, args.input_size
    if takes_tokens(args):
        _refuse_features(args)
    elif input_size is None:
        frontend = _build_frontend(args)
        input_size = frontend.output_size()
    if frontend is None:
        args.frontend, args.frontend_conf = None, {}
    if getattr(args, "collect_stats", False):
        return FeatureModel(frontend)

    check_names("base_lm_conf", args.base_lm_conf, get_default_kwargs(load_base_lm))
    lm, tokenizer, identity = load_base_lm(args.base_lm, **args.base_lm_conf)
    compute_dtype = lm.dtype  # the arm full converts it to float32
    speech_embedder = _build_embedder(args, lm, input_size)
    lm = adapt(lm, args.adaptation, **args.adaptation_conf)
    known = get_default_kwargs(ESPnetDUSModel)
    check_names("model_conf", args.model_conf, known)
    model_conf = {**known, **args.model_conf}
    ctc_units = load_ctc_units(args, tokenizer)
    ctc = None
    if ctc_units is not None:
        check_names("ctc_conf", args.ctc_conf, get_default_kwargs(CTCHead))
        has_norm = is_above_base_layer(lm, model_conf["ctc_layer"])
        ctc = CTCHead(lm.config.hidden_size, len(ctc_units), has_norm, **args.ctc_conf)
        if ctc_units.type == "llm":
            ctc.start_at_embeddings(ctc_units, lm)
    return ESPnetDUSModel(
        lm=lm,
        tokenizer=tokenizer,
        identity=identity,
        frontend=frontend,
        specaug=_build(specaug_choices, args),
        normalize=_build(normalize_choices, args),
        speech_embedder=speech_embedder,
        ctc=ctc,
        ctc_units=ctc_units,
        compute_dtype=compute_dtype,
        **model_conf,
    )


def load_model(
    config: Union[str, Path],
    checkpoint: Union[str, Path],
    device: str = "cpu",
    **overrides: Any,
) -> Tuple[ESPnetDUSModel, argparse.Namespace]:
    """Load a trained model, without ESPnet's task, whose imports take seconds.

    Args:
        config: The `config.yaml` of the training.
        checkpoint: A checkpoint of it.
        device: `cpu`, `cuda` or `cuda:N`.
        overrides: Options that replace those of the training.

    Returns:
        The model, and its options.

    Raises:
        ValueError: Options that do not fit; the message names them.
        RuntimeError: The checkpoint does not fit the model.
    """
    options = read_yaml(config)
    args = argparse.Namespace(**{**options, **overrides})
    model = build_model(args).to(device)
    model.load_state_dict(safe_torch_load(checkpoint, map_location=device))
    return model, args


def _build_frontend(args: argparse.Namespace) -> torch.nn.Module:
    try:
        frontend = _build(frontend_choices, args)
    except ImportError as error:
        raise ValueError(
            f"frontend: {args.frontend} needs a package that is not installed: {error}"
        ) from error
    if not getattr(args, "freeze_frontend", True):
        return frontend
    sha256 = freeze_pretrained(frontend)
    if sha256:
        name = f"{args.frontend} {json.dumps(args.frontend_conf, sort_keys=True)}"

        def check(saved: Dict[str, str]) -> None:
            if saved["sha256"] != sha256:
                raise RuntimeError(
                    f"this checkpoint was trained with the frontend {saved['name']} "
                    f"(sha256 {saved['sha256'][:12]}), but the one loaded is {name} "
                    f"(sha256 {sha256[:12]}): load the former (--frontend_conf)"
                )

        identity = {"name": name, "sha256": sha256}
        record_identity(frontend, "pretrained_identity", identity, check)
    return frontend


def _build_embedder(
    args: argparse.Namespace, lm: torch.nn.Module, input_size: Optional[int]
) -> torch.nn.Module:
    hidden_size, conf = lm.config.hidden_size, args.speech_embedder_conf
    kind = TokenEmbedder if takes_tokens(args) else SpeechEmbedder
    check_names("speech_embedder_conf", conf, get_default_kwargs(kind))
    if not takes_tokens(args):
        return SpeechEmbedder(input_size, hidden_size, embedding_rms(lm), **conf)
    info = TokenizerInfo.read(args.speech_tokenizer)
    embedder = TokenEmbedder(info.vocab_sizes, hidden_size, **conf)
    embedder.start_at_embeddings(lm.get_input_embeddings())
    record_identity(
        embedder,
        "tokenizer_identity",
        info.identity,
        lambda saved: check_same_tokenizer(saved, info),
    )
    return embedder


def _refuse_features(args: argparse.Namespace) -> None:
    """Check that options of tokens do not ask for what only features have."""
    tokenizer_info(args)  # there must be one
    if args.input_size is not None:
        raise ValueError(f"input_size: {args.input_size}: speech tokens have no size")
    if args.specaug is not None:
        raise ValueError(
            f"specaug: {args.specaug} is for features; tokens are masked by "
            "speech_embedder_conf, num_time_mask"
        )
    args.normalize, args.normalize_conf = None, {}


def _build(choices: ClassChoices, args: argparse.Namespace) -> Optional[Any]:
    part = choices.get_class(getattr(args, choices.name))
    if part is None:
        return None
    conf = getattr(args, f"{choices.name}_conf")
    check_names(f"{choices.name}_conf", conf, inspect.signature(part).parameters)
    return part(**conf)


def load_ctc_units(args: argparse.Namespace, tokenizer=None) -> Optional[CTCUnits]:
    """Load the CTC units that the options name, or return None."""
    if args.ctc_units is None:
        return None
    if tokenizer is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.base_lm, **LOCAL_DATA)
    return CTCUnits(args.ctc_units, tokenizer)
