"""Commands around a training: check the start, find batch sizes, train."""

from pathlib import Path
from typing import Optional, Sequence

from espnet_dus.bin import Commands


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    others = "All other options are those of the command train, such as --ctc_units."
    commands.add(
        "check_upscaling",
        "espnet_dus.bin.training:check_upscaling",
        "Build the adapted model and check that it starts as the base LM (stage 7).",
        epilog=others,
    )
    commands.add(
        "find_batch",
        "espnet_dus.bin.training:find_batch",
        "Find how many utterances of each length fit into memory, by a dry run.",
        epilog="Writes a YAML fragment for --streaming_conf batch_sizes=FILE. "
        + others,
    )
    commands.add(
        "train",
        "espnet_dus.bin.dus_train:main",
        "Train, or collect statistics (stages 10 and 11).",
        add_help=False,
    )


def check_upscaling(
    base_lm: str,
    text: str,
    speech_scp: str,
    out_dir: str,
    cmd: Sequence[str],
    config: Optional[str] = None,
    speech_type: str = "sound",
    every_kind: bool = True,
) -> None:
    """Check that the untrained model is the base LM.

    Args:
        base_lm: Base LM directory.
        text: File of real text.
        speech_scp: Table whose first utterance is used.
        out_dir: Directory to write: report.md and stack.png.
        cmd: Options of the command train.
        config: Training configuration.
        speech_type: sound, or kaldi_ark (features or speech tokens).
        every_kind: Also check every other kind and scope.
    """
    from espnet2.train.dataset import ESPnetDataset

    from espnet_dus.data.dataset import token_frames
    from espnet_dus.data.lengths import takes_tokens, tokenizer_info
    from espnet_dus.evaluation.identity_check import run
    from espnet_dus.task import DUSTask

    options = ["--base_lm", base_lm, "--output_dir", out_dir, *cmd]
    options += ["--config", config] if config else []
    speech = ESPnetDataset([(speech_scp, "speech", speech_type)])[0][1]["speech"]
    if speech.ndim == 2:
        options += ["--input_size", str(speech.shape[1])]
    args = DUSTask.get_parser().parse_args(options)
    if takes_tokens(args):
        speech = token_frames(speech, tokenizer_info(args))
    text = Path(text).read_text(encoding="utf-8")
    run(args, text, speech, Path(out_dir), every_kind)


def find_batch(
    config: str,
    base_lm: str,
    out: str,
    cmd: Sequence[str],
    device: Optional[str] = None,
    max_memory: Optional[float] = None,
    lengths: Optional[Sequence[int]] = None,
    num_processes: int = 1,
    most: int = 1024,
) -> None:
    """Find batch sizes and write them.

    Args:
        config: Training configuration.
        base_lm: Base LM directory.
        out: YAML file to write.
        cmd: Options of the command train.
        device: cuda or cpu; without it, cuda if there is one.
        max_memory: GB to use; required on a CPU; without it, 90 % of the GPU's memory.
        lengths: LLM positions of the longest utterance of each bucket; without it, from
            64 in steps of 32 to the longest that streaming_conf allows.
        num_processes: GPUs that will train together: several have copies of the
            gradients.
        most: Largest batch tried.
    """
    import torch

    from espnet_dus.data.lengths import samples_of_positions
    from espnet_dus.io import write_text
    from espnet_dus.task import DUSTask
    from espnet_dus.training.batch_search import (
        default_lengths,
        find_batch_sizes,
        gradient_bytes,
        report,
    )

    args = DUSTask.get_parser().parse_args(
        ["--config", config, "--base_lm", base_lm]
        # statistics of features make no difference to the memory
        + ["--normalize", "utterance_mvn", *cmd]
    )
    args.normalize_conf = {}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = "CPU"
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
        if max_memory is None:
            max_memory = 0.9e-9 * torch.cuda.get_device_properties(device).total_memory
    if max_memory is None:
        raise ValueError("--max_memory: on a CPU, say how many GB may be used")
    model = DUSTask.build_model(args).to(device)
    if args.gradient_checkpointing:
        model.lm.gradient_checkpointing_enable({"use_reentrant": False})
    max_bytes = round(max_memory * 1e9)
    if num_processes > 1 and not args.gradient_as_bucket_view:
        max_bytes -= gradient_bytes(model)
    (optimizer,) = DUSTask.build_optimizers(args, model)
    sizes = find_batch_sizes(
        model,
        optimizer,
        lambda positions: samples_of_positions(args, positions),
        lengths or default_lengths(args, len(model.prompt_ids)),
        max_bytes,
        most,
    )
    text = report(
        sizes,
        [
            f"find_batch: {Path(config).name} on {model.identity.name}, {name},",
            f"at most {max_memory:.1f} GB, {num_processes} process(es), "
            f"gradient_checkpointing {str(args.gradient_checkpointing).lower()}.",
        ],
    )
    write_text(out, text)
    print(text, end="")
