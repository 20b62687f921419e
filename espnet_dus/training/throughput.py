"""The speed of a training: one line in the log every few batches.

    1epoch:train:40/106batch: loss=3.213, grad_norm=1.20, audio 31.2 s/s, 420 tokens/s,
    padding 4.2 %, data wait 1.1 %, MFU 38.0 %, peak memory 12.3 GB, epoch done in 3
    minutes, training done in 2 hours

Rates are of all processes together, from one such line to the next. Tokens are
positions of the LLM's sequence: speech positions, prompt and text. MFU, the share that
the model's own FLOPs (see `flops`) have in the hardware's peak, is left out where the
peak is not known.
"""

import logging
import math
import resource
import time
from typing import Any, NamedTuple, Optional

import humanfriendly
import torch
from espnet2.train.reporter import aggregate

from espnet_dus.model.sequence import Joined
from espnet_dus.training.distributed import world_size
from espnet_dus.training.flops import Work, peak_flops, training_flops
from espnet_dus.training.resume import Epoch


class WorkCounter:
    """Sums the content of the batches that a model is trained on.

    The sums stay on the model's device until `take`, so that no step waits for it.

    Args:
        model: The `ESPnetDUSModel`, without DDP around it.
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.total: Optional[torch.Tensor] = None
        model.count_work = self._add

    def remove(self) -> None:
        """Stop counting."""
        self.model.count_work = None

    def take(self) -> Work:
        """Return the sums over all processes since the last call."""
        total, self.total = self.total, None
        if total is None:
            return Work(*[0.0] * len(Work._fields))
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return Work(*total.tolist())

    def _add(self, samples_B, speech_B, tokens_B, seq: Joined) -> None:
        """Add a batch: lengths of its parts, and what the base LM reads."""
        batch, length = seq.inputs_BTD.shape[:2]
        work = Work(
            utterances=len(tokens_B),
            samples=samples_B.sum(),
            speech=speech_B.sum(),
            positions=seq.lengths_B.sum(),
            padded=batch * length,
            targets=tokens_B.sum() + len(tokens_B),
            speech_pairs=speech_B.square().sum(),
            pairs=seq.lengths_B.square().sum(),
        )
        numbers = dict(dtype=torch.double, device=speech_B.device)
        step = torch.stack([torch.as_tensor(number, **numbers) for number in work])
        self.total = step if self.total is None else self.total + step


class Figures(NamedTuple):
    """The figures of a line.

    Attributes:
        loss: Mean of the batches.
        grad_norm: Mean of the updates; NaN without one.
        audio_seconds_per_second: Seconds of audio trained on per second.
        tokens_per_second: Positions of the sequence, without padding.
        padding_share: Share of padding in all positions computed.
        data_wait_share: Share of the time spent waiting for the next batch.
        mfu: See the module; NaN if the peak is not known.
        peak_memory_gb: Peak memory of the GPU; of the process without one.
        epoch_seconds_left: Seconds for the rest of this epoch's batches; NaN if not
            known.
        training_seconds_left: Seconds for the rest of the training, without validation.
    """

    loss: float
    grad_norm: float
    audio_seconds_per_second: float
    tokens_per_second: float
    padding_share: float
    data_wait_share: float
    mfu: float
    peak_memory_gb: float
    epoch_seconds_left: float
    training_seconds_left: float

    def __str__(self) -> str:
        parts = [
            f"loss={self.loss:.4g}",
            f"grad_norm={self.grad_norm:.3g}",
            f"audio {self.audio_seconds_per_second:.1f} s/s",
            f"{self.tokens_per_second:,.0f} tokens/s",
            f"padding {self.padding_share:.1%}",
            f"data wait {self.data_wait_share:.1%}",
            f"peak memory {self.peak_memory_gb:.2f} GB",
        ]
        if not math.isnan(self.mfu):
            parts.insert(6, f"MFU {self.mfu:.1%}")
        for what in ("epoch", "training"):
            seconds = getattr(self, f"{what}_seconds_left")
            if not math.isnan(seconds):
                left = humanfriendly.format_timespan(round(seconds))
                parts.append(f"{what} done in {left}")
        return ", ".join(parts)


class ThroughputLog:
    """Writes the lines.

    Args:
        epoch: The current epoch.
        options: Those of the trainer (`DUSTrainerOptions`).
        summary_writer: TensorBoard's, or None.
    """

    def __init__(self, epoch: Epoch, options: Any, summary_writer: Any = None):
        self.model, self.reporter = epoch.model, epoch.reporter
        self.num_batches = epoch.batches.total()
        self.options, self.summary_writer = options, summary_writer
        self.peak = peak_flops(options.peak_tflops) * world_size()
        self.counter = WorkCounter(self.model)
        self.begin = self.since = time.perf_counter()
        self.begin_count = self.since_count = self.reporter.count

    def after_batch(self) -> None:
        """Write the line if it is due; all processes call this together."""
        count = self.reporter.count
        if count % self.options.log_interval or count == self.since_count:
            return
        figures = self.figures()
        total = "" if self.num_batches is None else f"/{self.num_batches}"
        logging.info(f"{self.reporter.epoch}epoch:train:{count}{total}batch: {figures}")
        if self.summary_writer is not None:
            for name, value in figures._asdict().items():
                if name not in ("loss", "grad_norm") and not math.isnan(value):
                    self.summary_writer.add_scalar(
                        f"throughput/{name}", value, self.reporter.total_count
                    )

    def figures(self) -> Figures:
        """Measure from the last call to now."""
        now, count = time.perf_counter(), self.reporter.count
        rate = self.options.samples_per_second
        seconds, batches = now - self.since, count - self.since_count
        work = self.counter.take()
        waits = self.reporter.stats["iter_time"][-batches:]
        self.since, self.since_count = now, count
        per_batch = (now - self.begin) / (count - self.begin_count)
        epoch_left = training_left = math.nan
        if self.num_batches is not None:
            epoch_left = per_batch * (self.num_batches - count)
            epochs_left = self.options.max_epoch - self.reporter.get_epoch()
            training_left = epoch_left + per_batch * self.num_batches * epochs_left
        return Figures(
            loss=self._mean("loss", batches),
            grad_norm=self._mean("grad_norm", batches),
            audio_seconds_per_second=work.samples / rate / seconds,
            tokens_per_second=work.positions / seconds,
            padding_share=1 - work.positions / max(work.padded, 1),
            data_wait_share=sum(v.value for v in waits) / seconds,
            mfu=self._flops(work) / seconds / self.peak if self.peak else math.nan,
            peak_memory_gb=peak_memory() / 1e9,
            epoch_seconds_left=epoch_left,
            training_seconds_left=training_left,
        )

    def _flops(self, work: Work) -> float:
        model = self.model
        num_layers = model.ctc_layer + 1 if model.ctc_only else None
        return sum(
            training_flops(model.lm, model.speech_embedder, model.ctc, work, num_layers)
        )

    def _mean(self, name: str, batches: int) -> float:
        values = self.reporter.stats.get(name, [])[-batches:]
        finite = [value for value in values if math.isfinite(value.value)]
        return float(aggregate(finite)) if finite else math.nan


def peak_memory() -> int:
    """Return the peak memory in bytes of the GPU, or without one of this process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    # ru_maxrss is in kibibytes on Linux
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
