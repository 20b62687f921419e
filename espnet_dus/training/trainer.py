"""ESPnet's Trainer, for long trainings on many machines.

Adds exact resume inside an epoch (`resume`), preemption handling (`preemption`), a
limit on non-finite updates (`nonfinite`), throughput logging (`throughput`), schedules
in shares of the training (`schedule`), accumulation that equals one big batch
(`accumulation`) and DDP fixes (`distributed`). ESPnet's loop over training batches is
unchanged; work between two steps lives in the iterator, `DUSTrainer._steps`.
"""

import argparse
import dataclasses
import json
import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional

import torch
from espnet2.torch_utils.device_funcs import to_device
from espnet2.torch_utils.safe_torch_load import safe_torch_load
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train.trainer import Trainer, TrainerOptions, autocast_args
from espnet2.utils.build_dataclass import build_dataclass
from espnet2.utils.types import float_or_none, str2bool

from espnet_dus.data.lengths import input_positions, input_rate
from espnet_dus.data.settings import data_settings
from espnet_dus.io import atomic_path, locked, write_text
from espnet_dus.model.checkpoint import count_as_paper, parameter_counts
from espnet_dus.training.accumulation import as_one_batch
from espnet_dus.training.checkpoint_files import atomic_torch_save, whole_checkpoint
from espnet_dus.training.cost import write_training_cost
from espnet_dus.training.criteria import check_criteria
from espnet_dus.training.distributed import (
    gather_numbers,
    has_unused_parameters,
    prepare_for_ddp,
    rank,
    sum_by_name,
    synchronize_last,
)
from espnet_dus.training.nonfinite import (
    NonfiniteSteps,
    finite_values,
    spoil_nonfinite_loss,
)
from espnet_dus.training.preemption import StopSignals, exit_to_be_restarted
from espnet_dus.training.resume import (
    Epoch,
    ResumableBatches,
    leave_signals_to_the_training,
)
from espnet_dus.training.schedule import fit_schedule, steps_kept, updates_per_epoch
from espnet_dus.training.step_checkpoint import StepCheckpoints
from espnet_dus.training.throughput import ThroughputLog

SEEDS_APART = 1_000_003  # from the seeds of one process to those of the next


@dataclasses.dataclass
class Run:
    """What spans the calls of a training: ESPnet's Trainer has no instances.

    Attributes:
        checkpoints: The states inside an epoch.
        stop: The signals that ask the training to stop.
        epoch: The current epoch; None: there is nothing left to train.
    """

    checkpoints: StepCheckpoints
    stop: StopSignals = dataclasses.field(default_factory=StopSignals)
    epoch: Optional[Epoch] = None

    def stop_if_asked(self) -> None:
        """Save and exit if a process got a signal; all processes call this together."""
        if self.stop.any_process():
            path = self.epoch.save()
            exit_to_be_restarted(f"{self.stop.received or 'a signal'}: saved {path}")


@dataclasses.dataclass
class DUSTrainerOptions(TrainerOptions):
    """ESPnet's options, and those of `DUSTrainer.add_arguments`.

    Attributes:
        samples_per_second: Samples (or feature frames) in a second of audio.
        num_positions: Returns the speech positions of a number of these.
        data_settings: What the batches of an epoch depend on, as text by name.
        run: What spans the calls of this training.
    """

    save_interval_steps: int
    max_nonfinite_steps: int
    peak_tflops: Optional[float]
    gradient_checkpointing: bool
    samples_per_second: float
    num_positions: Callable[[int], int]
    data_settings: Dict[str, str]
    run: Run


class DUSTrainer(Trainer):
    """ESPnet's Trainer; see the module for what is added."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser):
        """Add the options of this trainer."""
        group = parser.add_argument_group(description="Long trainings")
        group.add_argument(
            "--save_interval_steps",
            type=int,
            default=0,
            help="updates between two states saved inside an epoch; 0: none",
        )
        group.add_argument(
            "--keep_step_checkpoints",
            type=int,
            default=2,
            help="number of these states that are kept",
        )
        group.add_argument(
            "--max_nonfinite_steps",
            type=int,
            default=20,
            help="updates of an epoch that may be skipped because the loss or the "
            "gradient is non-finite",
        )
        group.add_argument(
            "--peak_tflops",
            type=float_or_none,
            help="peak of a GPU in TFLOP/s, for the MFU in the log; default: looked up "
            "for some GPUs",
        )
        group.add_argument(
            "--gradient_checkpointing",
            type=str2bool,
            default=False,
            help="recompute the LM's layers in the backward pass: less memory, about a "
            "third more computation",
        )

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> DUSTrainerOptions:
        """Take the options of the trainer from those of the command.

        Raises:
            ValueError: An option is out of range.
        """
        for name, least in (
            ("save_interval_steps", 0),
            ("keep_step_checkpoints", 1),
            ("max_nonfinite_steps", 0),
        ):
            if getattr(args, name) < least:
                raise ValueError(f"{name}: {getattr(args, name)} is below {least}")
        states = Path(args.output_dir) / "step_checkpoints"
        # features on disk have a frame every 10 ms, see data.format
        args = argparse.Namespace(
            **vars(args),
            samples_per_second=float(input_rate(args)),
            num_positions=partial(input_positions, args),
            data_settings=data_settings(args),
            run=Run(StepCheckpoints(states, args.keep_step_checkpoints)),
        )
        return build_dataclass(DUSTrainerOptions, args)

    @classmethod
    def run(cls, model, trainer_options, **kwargs):
        """Train; every file written with `torch.save` is whole or absent.

        In the output directory, `params.json` says how much is trained, and
        `training.json` what the training took: see `cost`.

        Raises:
            SystemExit: A signal came; the exit code is `preemption.EXIT_CODE`.
        """
        options, run = trainer_options, trainer_options.run
        check_criteria(options, kwargs["schedulers"], model)
        output_dir = Path(options.output_dir)
        if rank() == 0:
            content = {
                **parameter_counts(model),
                "as_the_paper_counts": count_as_paper(model),
                "base_lm": vars(model.identity),
            }
            write_text(output_dir / "params.json", json.dumps(content, indent=2) + "\n")
        if options.gradient_checkpointing:
            model.lm.gradient_checkpointing_enable({"use_reentrant": False})
        if kwargs["distributed_option"].distributed:
            prepare_for_ddp(model)
            options.unused_parameters |= has_unused_parameters(model)
        iter_factory = kwargs["train_iter_factory"]
        options.accum_grad = getattr(iter_factory, "accum_grad", options.accum_grad)
        updates = updates_per_epoch(iter_factory, options.accum_grad)
        for optimizer, scheduler in zip(kwargs["optimizers"], kwargs["schedulers"]):
            fit_schedule(optimizer, scheduler, updates and updates * options.max_epoch)
        model.register_forward_hook(spoil_nonfinite_loss)
        lock = locked(output_dir) if rank() == 0 else nullcontext()
        with lock, atomic_torch_save(), run.stop.noted():
            if not options.resume:
                run.checkpoints.clear()
            super().run(model=model, trainer_options=options, **kwargs)
            run.checkpoints.clear()
            if rank() == 0:
                write_training_cost(output_dir, trained=run.epoch is not None)

    @staticmethod
    def resume(checkpoint, model, **kwargs):
        """Continue from a checkpoint, mending an interruption just after it.

        The Trainer writes `checkpoint.pth`, then `Nepoch.pth`, then the link
        `latest.pth`. Killed in between, it would miss the second when it averages the
        best epochs, and the third would stay behind if this was the last epoch.
        """
        checkpoint = whole_checkpoint(Path(checkpoint))
        with steps_kept(kwargs["schedulers"]):
            Trainer.resume(checkpoint=checkpoint, model=model, **kwargs)
        if rank() != 0:
            return
        epoch = kwargs["reporter"].get_epoch()
        epoch_file = Path(checkpoint).parent / f"{epoch}epoch.pth"
        if not epoch_file.exists():
            logging.warning(f"{epoch_file} is missing: rewritten from {checkpoint}")
            state = safe_torch_load(checkpoint, map_location="cpu")
            torch.save(state["model"], epoch_file)
        with atomic_path(epoch_file.with_name("latest.pth")) as link:
            link.symlink_to(epoch_file.name)

    @classmethod
    def train_one_epoch(cls, model, iterator, reporter, **kwargs):
        """Train an epoch, or what an interrupted process has left of it."""
        options, run = kwargs["options"], kwargs["options"].run
        if rank() > 0:
            # Dropout, masks and the texts of text retention differ between processes.
            set_all_random_seed(
                options.seed + reporter.get_epoch() + SEEDS_APART * rank()
            )
        inner = getattr(model, "module", model)
        inner.set_epoch(reporter.get_epoch())
        for optimizer in kwargs["optimizers"]:
            # An accumulation that the last epoch left incomplete: a process that
            # resumes here would not have it.
            optimizer.zero_grad()
        batches = ResumableBatches(iterator, options.data_settings)
        if options.log_interval is None:  # as ESPnet, which is given no length
            options.log_interval = max((batches.total() or 2000) // 20, 10)
        parts = [*kwargs["optimizers"], *kwargs["schedulers"], kwargs["scaler"]]
        parts = [part for part in parts if part is not None]
        run.epoch = Epoch(inner, parts, reporter, batches, run.checkpoints)
        if options.resume:
            with steps_kept(kwargs["schedulers"]):
                run.epoch.restore()
        nonfinite = NonfiniteSteps(
            reporter,
            Path(options.output_dir),
            options.max_nonfinite_steps,
            options.accum_grad if kwargs["scaler"] else 0,
        )
        steps = cls._steps(model, options, nonfinite, kwargs["summary_writer"])
        invalid = super().train_one_epoch(
            model=model, iterator=steps, reporter=reporter, **kwargs
        )
        number = int(gather_numbers([batches.utterances]).sum())
        logging.info(
            f"epoch {reporter.get_epoch()}: trained on {number:,} utterances; those "
            f"left out are in {options.output_dir}/bad_utterances.txt"
        )
        # if all batches were done before, ESPnet has seen no valid step
        return invalid and not finite_values(reporter, "grad_norm")

    @classmethod
    @torch.no_grad()
    def validate_one_epoch(cls, model, iterator, reporter, options, distributed_option):
        """Validate as the epoch was trained.

        ESPnet's own averages the batches' means, and ends with the first process that
        has no more; these are means over the tokens of all processes.
        """
        inner = getattr(model, "module", model)
        inner.set_epoch(reporter.get_epoch())
        inner.eval()
        leave_signals_to_the_training(iterator)
        sums: Dict[str, torch.Tensor] = {}
        for ids, batch in iterator:  # each process has the same number
            if ids and not options.no_forward_run:
                batch = to_device(batch, "cuda" if options.ngpu > 0 else "cpu")
                with torch.autocast("cuda", enabled=options.use_amp, **autocast_args):
                    of_batch = inner.loss_sums(**batch)
                for name, sum_and_count in of_batch.items():
                    pair = torch.stack(sum_and_count).double()
                    sums[name] = sums.get(name, 0) + pair
            options.run.stop_if_asked()
        totals = sum_by_name({name: pair.tolist() for name, pair in sums.items()})
        if totals:
            means = {name: total / count for name, (total, count) in totals.items()}
            reporter.register({**means, "loss": inner.combine(means)})
            reporter.next()

    @classmethod
    def _steps(cls, model, options, nonfinite, summary_writer) -> Iterator:
        """Yield the batches; what follows `yield` is done after a batch's step."""
        epoch, accum_grad = options.run.epoch, options.accum_grad
        log = ThroughputLog(epoch, options, summary_writer)
        utt_ids: List[str] = []
        try:
            batches = as_one_batch(epoch.batches, accum_grad, options.num_positions)
            for batch in synchronize_last(model, batches, accum_grad):
                utt_ids += batch[0]
                yield batch
                if options.no_forward_run:
                    continue
                log.after_batch()
                updates, incomplete = divmod(epoch.reporter.count, accum_grad)
                if incomplete:
                    continue
                nonfinite.check(utt_ids)
                utt_ids = []
                interval = options.save_interval_steps
                if interval and updates % interval == 0:
                    epoch.save()
                options.run.stop_if_asked()
        finally:
            log.counter.remove()
