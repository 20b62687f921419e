"""The ESPnet task: options, and how the parts are built from them."""

import argparse
from pathlib import Path
from typing import Callable, List, Optional, Tuple

import torch
from espnet2.tasks.abs_task import AbsTask
from espnet2.train.dataset import ESPnetDataset
from espnet2.utils.get_default_kwargs import get_default_kwargs
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import int_or_none, str2bool, str_or_none

from espnet_dus.config import ConfigParser
from espnet_dus.data.dataset import (
    BadUtterances,
    DUSCollateFn,
    DUSPreprocessor,
    FaultTolerantDataset,
    NonEmptyBatches,
    check_sampling_rate,
    check_speech_tokenizer,
)
from espnet_dus.data.lengths import (
    min_length,
    sampling_rate,
    takes_tokens,
    tokenizer_info,
)
from espnet_dus.data.shards.config import DEFAULTS as STREAMING_DEFAULTS
from espnet_dus.io import read_scp
from espnet_dus.model.adaptation import ARMS
from espnet_dus.model.base_lm import load_base_lm
from espnet_dus.model.build import (
    build_model,
    frontend_choices,
    load_ctc_units,
    normalize_choices,
    specaug_choices,
)
from espnet_dus.model.checkpoint import check_init_param
from espnet_dus.model.ctc_head import CTCHead
from espnet_dus.model.espnet_model import ESPnetDUSModel
from espnet_dus.training.learning_rates import is_part, scale_learning_rates
from espnet_dus.training.trainer import DUSTrainer


class DUSTask(AbsTask):
    """Training, statistics and loading of `ESPnetDUSModel`, as ESPnet does it."""

    num_optimizers = 1
    class_choices_list = [frontend_choices, specaug_choices, normalize_choices]
    trainer = DUSTrainer

    @classmethod
    def get_parser(cls) -> ConfigParser:
        """Build ESPnet's parser; the file of `--config` may have `defaults:`."""
        parser = super().get_parser()
        parser.__class__ = ConfigParser  # ESPnet does not let a task choose it
        return parser

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser):
        """Add the options of this task: ESPnet's names where ESPnet has them."""
        group = parser.add_argument_group(description="Model")
        parser.set_defaults(required=parser.get_default("required") + ["base_lm"])
        group.add_argument("--base_lm", type=str_or_none, help="base LM directory")
        group.add_argument(
            "--base_lm_conf",
            action=NestedDictAction,
            default=get_default_kwargs(load_base_lm),
            help="dtype: auto, float32, bfloat16; attn_implementation: sdpa, eager",
        )
        group.add_argument(
            "--adaptation",
            default="dus",
            choices=list(ARMS),
            help="dus: trained layers are added. lora: low-rank updates. full: the "
            "whole LM. frozen: the speech embedder only",
        )
        group.add_argument(
            "--adaptation_conf", action=NestedDictAction, default={}, help="its options"
        )
        group.add_argument(
            "--speech_input",
            default="features",
            choices=["features", "tokens"],
            help="features of the frontend, or discrete tokens of --speech_tokenizer",
        )
        group.add_argument(
            "--speech_tokenizer", type=str_or_none, help="speech tokenizer directory"
        )
        group.add_argument(
            "--speech_embedder_conf",
            action=NestedDictAction,
            default={},
            help="of features: input_layer, channels, dropout_rate; of tokens: "
            "num_time_mask, time_mask_width_ratio_range, dropout_rate",
        )
        group.add_argument(
            "--model_conf",
            action=NestedDictAction,
            default=get_default_kwargs(ESPnetDUSModel),
            help="prompt, prompt_tuning, ctc_layer, ctc_weight, ctc_warmup_epochs, "
            "ctc_compression, lsm_weight, text_retention_weight, packing",
        )
        group.add_argument(
            "--ctc_conf",
            action=NestedDictAction,
            default=get_default_kwargs(CTCHead),
            help="dropout_rate",
        )
        group.add_argument(
            "--lr_scale",
            action=NestedDictAction,
            default={},
            help="learning-rate factors by prefix of parameter names",
        )
        group.add_argument(
            "--input_size",
            type=int_or_none,
            help="features per frame, where the data holds features and no audio",
        )

        group = parser.add_argument_group(description="Preprocessing")
        group.add_argument("--use_preprocessor", type=str2bool, default=True)
        group.add_argument("--ctc_units", type=str_or_none, help="made in stage 5")
        group.add_argument("--cleaner", type=str_or_none, help="ESPnet's text cleaner")
        group.add_argument(
            "--max_bad_utterances",
            type=int,
            default=0,
            help="how many utterances may be left out because of faulty data",
        )
        group.add_argument(
            "--streaming_conf",
            action=NestedDictAction,
            default=dict(STREAMING_DEFAULTS),
            help="data of --iterator_type task: shards, max_tokens, batch_sizes, ...",
        )
        group.add_argument(
            "--freeze_frontend",
            type=str2bool,
            default=True,
            help="do not train the frontend's pretrained model, nor save it",
        )
        for class_choices in cls.class_choices_list:
            class_choices.add_arguments(group)

    @classmethod
    def check_required_command_args(cls, args: argparse.Namespace):
        """Check the options of a training before anything is built.

        Raises:
            ValueError: Options that contradict each other or have no effect.
        """
        super().check_required_command_args(args)
        if args.collect_stats:
            return
        if args.use_tf32 and args.use_amp:
            raise ValueError(
                "use_amp does not work together with use_tf32: set one of them to "
                "false. base_lm_conf dtype=bfloat16 computes in it without use_amp"
            )
        if args.base_lm_conf.get("dtype") == "float16" and not args.use_amp:
            raise ValueError(
                "base_lm_conf dtype=float16: small gradients become zero without a "
                "scaled loss; use bfloat16, or --use_amp true"
            )
        warmup = args.model_conf.get("ctc_warmup_epochs", 0)
        if 0 < args.max_epoch <= warmup and args.model_conf.get("ctc_weight") != 1:
            raise ValueError(
                f"ctc_warmup_epochs: {warmup} of {args.max_epoch} epochs (max_epoch) "
                "would train CTC alone, so the LLM would never be trained; use fewer, "
                "or ctc_weight 1"
            )

    @classmethod
    def required_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> Tuple[str, ...]:
        """Return the data that must be there."""
        return ("speech",) if inference else ("speech", "text")

    @classmethod
    def optional_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> Tuple[str, ...]:
        """Return the data that may be there."""
        return ("text_before",)

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
            args.base_lm,
            train=train,
            text_cleaner=args.cleaner,
            ctc_units=load_ctc_units(args),
            bad_utterances=_bad_utterances(args),
            min_length=min_length(args),
            speech_tokenizer=tokenizer_info(args) if takes_tokens(args) else None,
        )

    @classmethod
    def build_dataset(cls, args, iter_options, keys_to_load=None):
        """Build ESPnet's dataset; unreadable utterances are counted and left out."""
        triples = iter_options.data_path_and_name_and_type
        if takes_tokens(args):
            check_speech_tokenizer(triples, tokenizer_info(args))
        elif args.input_size is None:
            check_sampling_rate(triples, sampling_rate(args))
        dataset = super().build_dataset(args, iter_options, keys_to_load)
        return FaultTolerantDataset(dataset, _bad_utterances(args))

    @classmethod
    def build_task_iter_factory(cls, args, iter_options, mode):
        """Build the iterator of `--iterator_type task`: shards, read as a stream.

        Raises:
            ValueError: Options that do not fit; the message names them.
        """
        if mode != "train":
            raise ValueError(
                f"iterator_type: task is for training; mode {mode} takes files: give "
                "--valid_iterator_type sequence (and --num_att_plot 0)"
            )
        if not isinstance(iter_options.preprocess_fn, DUSPreprocessor):
            raise ValueError("iterator_type: task needs --use_preprocessor true")
        if args.input_size is not None:
            raise ValueError(
                "iterator_type: task reads audio or speech tokens, not features"
            )
        if args.num_iters_per_epoch is not None:
            raise ValueError(
                f"num_iters_per_epoch: {args.num_iters_per_epoch} has no effect on a "
                "stream; its epochs are as long as streaming_conf hours_per_epoch says"
            )
        if args.accum_grad != 1:
            raise ValueError(
                f"accum_grad: {args.accum_grad} has no effect on a stream; it follows "
                "from streaming_conf tokens_per_update"
            )
        from espnet_dus.data.shards.build import build_factory

        return build_factory(
            args,
            iter_options.preprocess_fn,
            iter_options.collate_fn,
            iter_options.distributed,
        )

    @classmethod
    def build_streaming_iterator(
        cls, data_path_and_name_and_type, preprocess_fn, collate_fn, **kwargs
    ):
        """Build ESPnet's iterator over files, in their order.

        For statistics, unreadable utterances are counted, as in training.
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
            ValueError: Nothing is trained, or a pattern matches no parameter.
        """
        by_name = {n: p for n, p in model.named_parameters() if p.requires_grad}
        trained = torch.nn.ParameterDict(
            {name.replace(".", "/"): p for name, p in by_name.items()}
        )
        if not len(trained):
            raise ValueError(
                "no parameter is trained: check adaptation and freeze_param"
            )
        for init_param in [] if args.collect_stats else args.init_param:
            check_init_param(init_param, model)
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
        """Build the model, see `model.build.build_model`."""
        return build_model(args)


def _bad_utterances(args: argparse.Namespace) -> Optional[BadUtterances]:
    if getattr(args, "output_dir", None) is None:
        return None
    path = Path(args.output_dir) / "bad_utterances.txt"
    return BadUtterances(path, args.max_bad_utterances)
