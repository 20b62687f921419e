"""The ESPnet task: options, and how the parts are built from them."""

import argparse
import inspect
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import humanfriendly
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.asr.specaug.specaug import SpecAug
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN
from espnet2.tasks.abs_task import AbsTask
from espnet2.torch_utils.initialize import initialize
from espnet2.train.class_choices import ClassChoices
from espnet2.train.dataset import ESPnetDataset
from espnet2.utils.get_default_kwargs import get_default_kwargs
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import int_or_none, str2bool, str_or_none

from espnet_dus.model.adaptation import ARMS, adapt
from espnet_dus.model.base_lm import embedding_rms, load_base_lm
from espnet_dus.model.ctc import CTCHead, CTCUnits, is_above_base_layer
from espnet_dus.data.dataset import (
    BadUtterances,
    DUSCollateFn,
    DUSPreprocessor,
    FaultTolerantDataset,
    NonEmptyBatches,
    check_sampling_rate,
)
from espnet_dus.io import read_scp
from espnet_dus.training.learning_rates import is_part, scale_learning_rates
from espnet_dus.model.espnet_model import ESPnetDUSModel, FeatureModel
from espnet_dus.model.speech_embedder import SpeechEmbedder, fewest_frames, num_positions
from espnet_dus.training.trainer import DUSTrainer

frontend_choices = ClassChoices(
    "frontend", {"default": DefaultFrontend}, None, "default"
)
specaug_choices = ClassChoices("specaug", {"specaug": SpecAug}, optional=True)
normalize_choices = ClassChoices(
    "normalize",
    {"global_mvn": GlobalMVN, "utterance_mvn": UtteranceMVN},
    default="utterance_mvn",
    optional=True,
)

BASE_LM_CONF = {"dtype": "auto", "attn_implementation": None}
EMBEDDER_CONF = {"input_layer": "conv2d8", "channels": 256, "dropout_rate": 0.1}
# Of --iterator_type task; see data/streaming.py, data/mix.py and data/augment.py.
STREAMING_CONF = {
    "shards": None,
    "max_tokens": 8192,
    "batch_sizes": None,
    "num_buckets": 40,
    "buffer_size": 3000,
    "hours_per_epoch": None,
    "num_iters_per_epoch": None,
    "max_duration": 30.0,
    "min_text_ratio": 0.005,
    "max_text_ratio": 1.0,
    "speed_factors": [1.0],
    "noise": None,
    "noise_prob": 0.5,
    "noise_snr": [5.0, 20.0],
    "rir": None,
    "rir_prob": 0.3,
}


class DUSTask(AbsTask):
    """Training, statistics and loading of `ESPnetDUSModel`, as ESPnet does it."""

    num_optimizers = 1
    class_choices_list = [frontend_choices, specaug_choices, normalize_choices]
    trainer = DUSTrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser):
        """Add the options of this task: ESPnet's names where ESPnet has them."""
        group = parser.add_argument_group(description="Model")
        parser.set_defaults(required=parser.get_default("required") + ["base_lm"])
        group.add_argument("--base_lm", type=str_or_none, help="base LM directory")
        group.add_argument(
            "--base_lm_conf",
            action=NestedDictAction,
            default=dict(BASE_LM_CONF),
            help="dtype: auto, float32, bfloat16; attn_implementation: sdpa, eager",
        )
        group.add_argument(
            "--adaptation", default="dus", choices=list(ARMS), help="the arm"
        )
        group.add_argument(
            "--adaptation_conf", action=NestedDictAction, default={}, help="its options"
        )
        group.add_argument(
            "--speech_embedder_conf",
            action=NestedDictAction,
            default=dict(EMBEDDER_CONF),
            help="input_layer, channels, dropout_rate",
        )
        group.add_argument(
            "--model_conf",
            action=NestedDictAction,
            default=get_default_kwargs(ESPnetDUSModel),
            help="prompt, prompt_tuning, ctc_layer, ctc_weight, ctc_warmup_epochs, "
            "ctc_compression, lsm_weight, text_retention_weight",
        )
        group.add_argument(
            "--ctc_conf",
            action=NestedDictAction,
            default=get_default_kwargs(CTCHead),
            help="dropout_rate",
        )
        group.add_argument(
            "--init", type=str_or_none, help="initialization of the speech embedder"
        )
        group.add_argument(
            "--lr_scale",
            action=NestedDictAction,
            default={},
            help="beginnings of parameters' names, and the factors of their rates",
        )
        group.add_argument(
            "--input_size",
            type=int_or_none,
            help="features per frame, where the data holds features and no audio",
        )

        group = parser.add_argument_group(description="Preprocessing")
        group.add_argument("--use_preprocessor", type=str2bool, default=True)
        group.add_argument(
            "--token_type", default="hugging_face", choices=["hugging_face"]
        )
        group.add_argument("--token_list", type=str_or_none, help="for the user's eyes")
        group.add_argument(
            "--bpemodel", type=str_or_none, help="not used: tokens are the base LM's"
        )
        group.add_argument("--ctc_units", type=str_or_none, help="made in stage 5")
        group.add_argument("--non_linguistic_symbols", type=str_or_none)
        group.add_argument("--cleaner", type=str_or_none, help="ESPnet's text cleaner")
        group.add_argument("--g2p", type=str_or_none, choices=[None])
        group.add_argument(
            "--max_bad_utterances",
            type=int,
            default=0,
            help="how many utterances may be left out because of faulty data",
        )
        group.add_argument(
            "--streaming_conf",
            action=NestedDictAction,
            default=dict(STREAMING_CONF),
            help="data of --iterator_type task: shards, max_tokens, batch_sizes, ...",
        )
        for class_choices in cls.class_choices_list:
            class_choices.add_arguments(group)

    @classmethod
    def required_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> Tuple[str, ...]:
        """Give the data that must be there."""
        return ("speech",) if inference else ("speech", "text")

    @classmethod
    def optional_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> Tuple[str, ...]:
        """Give the data that may be there."""
        return ()

    @classmethod
    def build_collate_fn(cls, args: argparse.Namespace, train: bool) -> Callable:
        """Build the collation."""
        return DUSCollateFn()

    @classmethod
    def build_preprocess_fn(
        cls, args: argparse.Namespace, train: bool
    ) -> Optional[Callable]:
        """Build the preprocessor."""
        if not args.use_preprocessor:
            return None
        return DUSPreprocessor(
            train=train,
            token_type=args.token_type,
            token_list=args.base_lm,  # not read for this type, but it must be given
            bpemodel=args.base_lm,
            text_cleaner=args.cleaner,
            non_linguistic_symbols=args.non_linguistic_symbols,
            ctc_units=_load_ctc_units(args),
            bad_utterances=_bad_utterances(args),
            min_length=min_length(args),
        )

    @classmethod
    def build_dataset(cls, args, iter_options, keys_to_load=None):
        """Build ESPnet's dataset; what cannot be read is counted, not fatal."""
        if args.input_size is None:
            check_sampling_rate(
                iter_options.data_path_and_name_and_type, sampling_rate(args)
            )
        dataset = super().build_dataset(args, iter_options, keys_to_load)
        return FaultTolerantDataset(dataset, _bad_utterances(args))

    @classmethod
    def build_task_iter_factory(cls, args, iter_options, mode):
        """Build the iterator of `--iterator_type task`: shards, read as a stream.

        Raises:
            ValueError: Options that do not fit; the message names them.
        """
        conf = _known("streaming_conf", args.streaming_conf, STREAMING_CONF)
        if mode != "train":
            raise ValueError(
                f"iterator_type: task is for training; mode {mode} takes files: give "
                "--valid_iterator_type sequence (and --num_att_plot 0)"
            )
        if not isinstance(iter_options.preprocess_fn, DUSPreprocessor):
            raise ValueError("iterator_type: task needs --use_preprocessor true")
        if args.input_size is not None:
            raise ValueError("iterator_type: task reads audio, not features")
        from espnet_dus.data.shards.streaming import build_factory

        return build_factory(
            conf,
            preprocess=iter_options.preprocess_fn,
            collate=iter_options.collate_fn,
            num_positions=partial(speech_positions, args),
            prompt=args.model_conf.get("prompt", ""),
            fs=sampling_rate(args),
            num_workers=args.num_workers,
            distributed=iter_options.distributed,
            seed=args.seed,
            pin_memory=args.ngpu > 0,
        )

    @classmethod
    def build_streaming_iterator(
        cls, data_path_and_name_and_type, preprocess_fn, collate_fn, **kwargs
    ):
        """Build ESPnet's iterator over files, in their order.

        For statistics, what cannot be read is counted, as it is in training.
        """
        bad = getattr(preprocess_fn, "bad_utterances", None)
        if kwargs.get("inference", False) or bad is None:
            loader = super().build_streaming_iterator(
                data_path_and_name_and_type, preprocess_fn, collate_fn, **kwargs
            )
            return NonEmptyBatches(loader)
        keys = list(read_scp(kwargs["key_file"] or data_path_and_name_and_type[0][0]))
        dataset = ESPnetDataset(
            data_path_and_name_and_type,
            preprocess=preprocess_fn,
            float_dtype=kwargs["dtype"],
            keys_to_load=set(keys),
        )
        cls.check_task_requirements(
            dataset, kwargs["allow_variable_data_keys"], train=False
        )
        loader = torch.utils.data.DataLoader(
            FaultTolerantDataset(dataset, bad),
            sampler=keys,
            batch_size=kwargs["batch_size"],
            num_workers=kwargs["num_workers"],
            collate_fn=collate_fn,
            pin_memory=kwargs["ngpu"] > 0,
        )
        return NonEmptyBatches(loader)

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> List[torch.optim.Optimizer]:
        """Build the optimizer over the trained parameters only.

        Raises:
            ValueError: Nothing is trained, a pattern matches no parameter, or a number
                is text to YAML.
        """
        _check_numbers("optim_conf", args.optim_conf)
        _check_numbers("scheduler_conf", args.scheduler_conf)
        by_name = {n: p for n, p in model.named_parameters() if p.requires_grad}
        trained = torch.nn.ParameterDict(
            {name.replace(".", "/"): p for name, p in by_name.items()}
        )
        if not len(trained):
            raise ValueError(
                "no parameter is trained: check adaptation and freeze_param"
            )
        for prefix in [] if args.collect_stats else args.freeze_param:
            if not any(is_part(name, prefix) for name, _ in model.named_parameters()):
                raise ValueError(f"freeze_param: {prefix!r} matches no parameter")
        optimizers = super().build_optimizers(args, trained)
        if not args.collect_stats:
            for optimizer in optimizers:
                scale_learning_rates(optimizer, by_name, args.lr_scale)
        return optimizers

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> torch.nn.Module:
        """Build the model; for collecting statistics, the frontend alone.

        Raises:
            ValueError: Options that do not fit; the message names them.
        """
        if args.input_size is None:
            frontend = _build(frontend_choices, args)
            input_size = frontend.output_size()
        else:
            args.frontend, args.frontend_conf = None, {}
            frontend, input_size = None, args.input_size
        if getattr(args, "collect_stats", False):
            return FeatureModel(frontend)

        lm, tokenizer, identity = load_base_lm(
            args.base_lm, **_known("base_lm_conf", args.base_lm_conf, BASE_LM_CONF)
        )
        embeddings = lm.get_input_embeddings().weight
        compute_dtype = embeddings.dtype  # the arm full makes float32 of it
        embedder_conf = _known(
            "speech_embedder_conf", args.speech_embedder_conf, EMBEDDER_CONF
        )
        speech_embedder = SpeechEmbedder(
            input_size,
            lm.config.hidden_size,
            embedding_rms(lm),
            **embedder_conf,
        )
        if args.init is not None:
            initialize(speech_embedder, args.init)
        lm = adapt(lm, args.adaptation, **args.adaptation_conf)
        ctc_units = _load_ctc_units(args, tokenizer)
        ctc = None
        if ctc_units is not None:
            ctc_conf = _known("ctc_conf", args.ctc_conf, get_default_kwargs(CTCHead))
            model_conf = {**get_default_kwargs(ESPnetDUSModel), **args.model_conf}
            has_norm = is_above_base_layer(lm, model_conf["ctc_layer"])
            ctc = CTCHead(lm.config.hidden_size, len(ctc_units), has_norm, **ctc_conf)
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
            **_known("model_conf", args.model_conf, get_default_kwargs(ESPnetDUSModel)),
        )


def sampling_rate(args: argparse.Namespace) -> int:
    """Give the rate (Hz) of the audio that a model with these options takes."""
    fs = args.frontend_conf.get("fs", 16000)
    return humanfriendly.parse_size(fs) if isinstance(fs, str) else fs


def _known(name: str, conf: Dict[str, Any], known: Dict[str, Any]) -> Dict[str, Any]:
    """Fill up an option with the defaults, of known keys."""
    _check_keys(name, conf, known)
    return {**known, **conf}


def _check_keys(name: str, conf: Dict[str, Any], known: Iterable[str]) -> None:
    """Check an option's keys.

    Raises:
        ValueError: It has a key that is not known.
    """
    if unknown := sorted(set(conf) - set(known)):
        raise ValueError(
            f"{name}: unknown key(s) {', '.join(unknown)}; expected some of "
            f"{', '.join(known)}"
        )


def _check_numbers(name: str, conf: Dict[str, Any]) -> None:
    """Refuse numbers that YAML takes for text, such as 8e-4 without a point.

    Raises:
        ValueError: There is one.
    """
    for key, value in conf.items():
        try:
            number = float(value) if isinstance(value, str) else None
        except ValueError:
            continue  # meant as text
        if number is not None:
            raise ValueError(
                f"{name}: {key}={value} is text to YAML, not a number; write "
                f"{key}={number:f} or, with a point, 1.0e-3"
            )


def _build(choices: ClassChoices, args: argparse.Namespace) -> Optional[Any]:
    part = choices.get_class(getattr(args, choices.name))
    if part is None:
        return None
    conf = getattr(args, f"{choices.name}_conf")
    _check_keys(f"{choices.name}_conf", conf, inspect.signature(part).parameters)
    return part(**conf)


def _load_ctc_units(args: argparse.Namespace, tokenizer=None) -> Optional[CTCUnits]:
    if args.ctc_units is None:
        return None
    if tokenizer is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.base_lm, local_files_only=True)
    return CTCUnits(args.ctc_units, tokenizer)


def _bad_utterances(args: argparse.Namespace) -> Optional[BadUtterances]:
    if getattr(args, "output_dir", None) is None:
        return None
    path = Path(args.output_dir) / "bad_utterances.txt"
    return BadUtterances(path, args.max_bad_utterances)


def min_length(args: argparse.Namespace) -> int:
    """Fewest samples, or feature frames, that give one speech position."""
    embedder_conf = {**EMBEDDER_CONF, **args.speech_embedder_conf}
    frames = fewest_frames(embedder_conf["input_layer"])
    if args.input_size is not None:
        return frames
    hop, window, center = _framing(args)
    return frames * hop if center else (frames - 1) * hop + window


def speech_positions(args: argparse.Namespace, num_samples: int) -> int:
    """Give the speech positions that samples become, with these options."""
    hop, window, center = _framing(args)
    frames = 1 + (num_samples if center else num_samples - window) // hop
    embedder_conf = {**EMBEDDER_CONF, **args.speech_embedder_conf}
    return num_positions(embedder_conf["input_layer"], frames)


def samples_of_positions(args: argparse.Namespace, positions: int) -> int:
    """Give the fewest samples that become so many speech positions."""
    hop, window, center = _framing(args)
    embedder_conf = {**EMBEDDER_CONF, **args.speech_embedder_conf}
    # the first position takes 2n - 1 frames, each further one n
    frames = fewest_frames(embedder_conf["input_layer"])
    frames += (positions - 1) * (frames + 1) // 2
    return (frames - 1) * hop + (0 if center else window)


def _framing(args: argparse.Namespace) -> Tuple[int, int, bool]:
    conf = {**get_default_kwargs(DefaultFrontend), **args.frontend_conf}
    return conf["hop_length"], conf["n_fft"], conf["center"]
