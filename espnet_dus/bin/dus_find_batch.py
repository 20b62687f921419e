#!/usr/bin/env python3
"""Find how many utterances of each length fit into memory, by a dry run.

Writes a YAML fragment for --streaming_conf batch_sizes=FILE. Options that are not
listed here go to the training command, such as --ctc_units or --adaptation_conf.
"""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Build the command's argument parser."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=" ".join(__doc__.splitlines()[2:]),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="Training configuration (YAML)")
    parser.add_argument("--base_lm", required=True, help="Base LM directory")
    parser.add_argument("--out", required=True, help="YAML file to write")
    parser.add_argument(
        "--device", help="cuda or cpu; not given: cuda where there is one"
    )
    parser.add_argument(
        "--max_memory",
        type=float,
        help="GB that may be taken; not given: 90 %% of the GPU's memory. Needed on a "
        "CPU",
    )
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=list(range(64, 545, 32)),
        help="LLM positions of the longest utterances of each bucket",
    )
    parser.add_argument(
        "--most", type=int, default=1024, help="No larger batch is tried"
    )
    return parser


@user_errors
def main(cmd=None):
    """Parse the command line, try out and write."""
    args, others = get_parser().parse_known_args(cmd)
    from pathlib import Path

    import torch

    from espnet_dus.data.lengths import samples_of_positions
    from espnet_dus.io import write_text
    from espnet_dus.task import DUSTask
    from espnet_dus.training.batch_search import find_batch_sizes, report

    task_args = DUSTask.get_parser().parse_args(
        ["--config", args.config, "--base_lm", args.base_lm]
        # statistics of features make no difference to the memory
        + ["--normalize", "utterance_mvn", *others]
    )
    task_args.normalize_conf = {}
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.max_memory is not None:
        max_bytes = round(args.max_memory * 1e9)
    elif device.startswith("cuda"):
        max_bytes = round(0.9 * torch.cuda.get_device_properties(device).total_memory)
    else:
        raise ValueError("--max_memory: on a CPU, say how many GB may be taken")
    model = DUSTask.build_model(task_args).to(device)
    (optimizer,) = DUSTask.build_optimizers(task_args, model)
    sizes = find_batch_sizes(
        model,
        optimizer,
        lambda positions: samples_of_positions(task_args, positions),
        args.lengths,
        max_bytes,
        args.most,
    )
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    header = [
        f"dus_find_batch: {Path(args.config).name} on {model.identity.name}, {name},",
        f"at most {max_bytes / 1e9:.1f} GB.",
    ]
    write_text(args.out, report(sizes, header))
    print(report(sizes, header), end="")


if __name__ == "__main__":
    main()
