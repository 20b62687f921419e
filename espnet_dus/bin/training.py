"""Commands around a training: check the start, find batch sizes, train."""

from pathlib import Path

from espnet_dus.bin import Commands, boolean


def add_commands(commands: Commands) -> None:
    """Add the commands of this wing."""
    command = commands.add(
        "check_upscaling",
        _check_upscaling,
        "Build the adapted model and check that it starts as the base LM (stage 7).",
        epilog="All other options are those of the command train.",
    )
    command.add_argument("--config", required=True, help="training configuration")
    command.add_argument("--base_lm", required=True, help="base LM directory")
    command.add_argument("--text", required=True, help="real text: a plain file")
    command.add_argument(
        "--speech_scp", required=True, help="table whose first utterance is used"
    )
    command.add_argument(
        "--speech_type", default="sound", choices=["sound", "kaldi_ark"]
    )
    command.add_argument("--out_dir", required=True, help="for report.md and stack.png")
    command.add_argument(
        "--every_kind",
        type=boolean,
        default=True,
        help="check every kind and scope beside the configuration's",
    )

    command = commands.add(
        "find_batch",
        _find_batch,
        "Find how many utterances of each length fit into memory, by a dry run.",
        epilog="Writes a YAML fragment for --streaming_conf batch_sizes=FILE. All "
        "other options are those of the command train, such as --ctc_units or "
        "--adaptation_conf.",
    )
    command.add_argument("--config", required=True, help="training configuration")
    command.add_argument("--base_lm", required=True, help="base LM directory")
    command.add_argument("--out", required=True, help="YAML file to write")
    command.add_argument(
        "--device", help="cuda or cpu; without it, cuda if there is one"
    )
    command.add_argument(
        "--max_memory",
        type=float,
        help="GB to use; required on a CPU; without it, 90 %% of the GPU's memory",
    )
    command.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        help="LLM positions of the longest utterance of each bucket; default: from "
        "64 in steps of 32 to the longest that streaming_conf allows",
    )
    command.add_argument(
        "--num_processes",
        type=int,
        default=1,
        help="GPUs that will train together: several have copies of the gradients",
    )
    command.add_argument("--most", type=int, default=1024, help="largest batch tried")

    commands.add(
        "train",
        _train,
        "Train, or collect statistics (stages 10 and 11).",
        add_help=False,
    )


def _train(others):
    from espnet_dus.bin import dus_train

    dus_train.main(others)


def _check_upscaling(
    config, base_lm, text, speech_scp, speech_type, out_dir, every_kind, others
):
    from espnet2.train.dataset import ESPnetDataset

    from espnet_dus.data.dataset import token_frames
    from espnet_dus.data.lengths import takes_tokens
    from espnet_dus.data.speech_tokens.info import TokenizerInfo
    from espnet_dus.evaluation.identity_check import run
    from espnet_dus.task import DUSTask

    options = ["--config", config, "--base_lm", base_lm]
    options += ["--output_dir", out_dir, *others]
    speech = ESPnetDataset([(speech_scp, "speech", speech_type)])[0][1]["speech"]
    if speech.ndim == 2:
        options += ["--input_size", str(speech.shape[1])]
    args = DUSTask.get_parser().parse_args(options)
    if takes_tokens(args):
        speech = token_frames(speech, TokenizerInfo.read(args.speech_tokenizer))
    run(
        args,
        Path(text).read_text(encoding="utf-8"),
        speech,
        Path(out_dir),
        every_kind,
    )


def _find_batch(
    config, base_lm, out, device, max_memory, lengths, num_processes, most, others
):
    import torch

    from espnet_dus.data.lengths import samples_of_positions
    from espnet_dus.io import write_text
    from espnet_dus.task import DUSTask
    from espnet_dus.training.batch_search import (
        bucket_bytes,
        default_lengths,
        find_batch_sizes,
        report,
    )

    args = DUSTask.get_parser().parse_args(
        ["--config", config, "--base_lm", base_lm]
        # statistics of features make no difference to the memory
        + ["--normalize", "utterance_mvn", *others]
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
        max_bytes -= bucket_bytes(model)
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
