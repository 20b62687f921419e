#!/usr/bin/env python3
"""Transcribe, chat with, list, inspect and demonstrate models.

MODEL is an experiment directory (exp/dus_x), a checkpoint in one, a pack (.zip) or a
Hugging Face hub id (user/name).
"""

import argparse
import sys

from espnet_dus.bin import user_errors
from espnet_dus.search.config import add_options

SEARCH_OPTIONS = ("beam_size", "ctc_weight")  # of those that dus_inference has


def get_parser() -> argparse.ArgumentParser:
    """Build the parser of the command and its subcommands."""
    parser = argparse.ArgumentParser(
        prog="espnet-dus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    loading = argparse.ArgumentParser(add_help=False)
    loading.add_argument(
        "--base_lm", help="of a pack or hub id: the base LM, if it is at hand"
    )
    loading.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    loading.add_argument(
        "--dtype",
        help="precision of the base LM: float32 or bfloat16; default: as in training",
    )
    searching = argparse.ArgumentParser(add_help=False)
    add_options(searching, SEARCH_OPTIONS)

    def add(name, run, description, parents=()):
        command = commands.add_parser(
            name,
            help=description,
            description=description,
            parents=parents,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    command = add(
        "transcribe", transcribe, "Transcribe recordings.", [loading, searching]
    )
    command.add_argument("audio", nargs="+", help="recordings of any length")
    command.add_argument("--model", required=True, help="see espnet-dus --help")
    command.add_argument("--out_dir", help="a file for each recording goes there")
    command.add_argument(
        "--segment_seconds",
        type=float,
        default=20.0,
        help="recordings are cut at pauses into segments of at most so many seconds; "
        "take what the training utterances have",
    )
    kinds = command.add_mutually_exclusive_group()
    for kind, what in (
        ("srt", "write subtitles"),
        ("json", "write lines of JSON, with time and confidence of each word"),
    ):
        kinds.add_argument(
            f"--{kind}",
            dest="kind",
            action="store_const",
            const=kind,
            default=argparse.SUPPRESS,
            help=what,
        )
    command.set_defaults(kind="txt")

    command = add("chat", chat, "Chat in text with the LLM in a model.", [loading])
    command.add_argument("--model", required=True, help="see espnet-dus --help")
    command.add_argument(
        "--base", action="store_true", help="show the base LM's answer too"
    )
    command.add_argument("--max_new_tokens", type=int, default=128, help="of an answer")

    command = add("models", models, "List the models on this machine.")
    command.add_argument("--root", default=".", help="where exp/ or egs2/ stands")

    command = add("info", info, "Show the stack of a model.", [loading])
    command.add_argument("model", help="see espnet-dus --help")

    command = add("demo", demo, "Start a demo for the browser.", [loading, searching])
    command.add_argument("--model", required=True, help="see espnet-dus --help")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for others too")
    command.add_argument("--port", type=int, default=7860, help="of the demo")
    return parser


@user_errors
def main(cmd=None):
    """Run a subcommand."""
    args = get_parser().parse_args(cmd)
    import logging

    logging.getLogger().setLevel(logging.WARNING)
    args.run(args)


def transcribe(args):
    """Transcribe each recording; one that fails does not stop the others."""
    import time
    from pathlib import Path

    import soundfile

    from espnet_dus.app.transcription import check_kind, render, transcribe
    from espnet_dus.io import write_text

    names = [Path(audio).stem for audio in args.audio]
    if args.out_dir and len(set(names)) < len(names):
        raise ValueError(
            "--out_dir: two recordings have one name (without folder and suffix), so "
            "their transcripts would have one too: transcribe them one by one"
        )
    speech2text = _load(args, _search(args))
    check_kind(speech2text, args.kind)
    failed = 0
    for number, audio in enumerate(args.audio, 1):
        started = time.perf_counter()
        try:
            transcript = transcribe(speech2text, audio, args.segment_seconds)
            text = render(transcript, args.kind)
        except (soundfile.LibsndfileError, OSError, ValueError) as error:
            failed += 1
            print(f"error: {audio}: {error}", file=sys.stderr)
            continue
        if args.out_dir:
            write_text(Path(args.out_dir, f"{names[number - 1]}.{args.kind}"), text)
        else:
            many = len(args.audio) > 1 and args.kind == "txt"
            print(f"{audio}: {text}" if many else text, end="", flush=True)
        print(
            f"{number} of {len(args.audio)}: {audio}, {transcript.seconds:.1f} s of "
            f"audio in {time.perf_counter() - started:.1f} s",
            file=sys.stderr,
        )
    if failed:
        raise RuntimeError(
            f"{failed} of {len(args.audio)} recordings failed, see above"
        )


def chat(args):
    """Answer line by line, each by itself, until an empty one."""
    from espnet_dus.model.adaptation import unadapted

    speech2text = _load(args)
    print("An empty line ends the chat; each line is answered by itself.")
    while question := _read_line():
        answer = speech2text.generate_text(question, args.max_new_tokens)
        print(answer, flush=True)
        if args.base:
            with unadapted(speech2text.model.lm):
                base = speech2text.generate_text(question, args.max_new_tokens)
            print(f"base LM: {'the same' if base == answer else base}", flush=True)


def models(args):
    """Print a table of the models that are found."""
    from espnet_dus.app.local_models import find_models

    found = find_models(args.root)
    if not found:
        raise ValueError(
            f"no models: no trained experiment in {args.root}/exp or "
            f"{args.root}/egs2/*/dus1/exp, no pack, and none that was fetched"
        )
    rows = [("MODEL", "adaptation", "base LM", "trained parameters")]
    for model in found:
        trained = "" if model.trained is None else f"{model.trained:,}"
        rows.append((*model[:3], trained))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths))
        print("  ".join(cells).rstrip())


def info(args):
    """Print what a model is made of."""
    from espnet_dus.model.stack import stack_text

    model = _load(args).model
    identity = model.identity
    print(f"{args.model}: {model.lm.config.model_type}, base LM {identity.name}")
    print(f"(revision {identity.revision or '-'}, sha256 {identity.sha256})\n")
    print(stack_text(model), end="")


def demo(args):
    """Serve the demo until it is interrupted."""
    from espnet_dus.app.demo import build

    speech2text = _load(args, _search(args))
    build(speech2text).launch(server_name=args.host, server_port=args.port)


def _load(args, search=None):
    from espnet_dus.app.local_models import load

    print(f"loading {args.model}", file=sys.stderr)
    return load(
        args.model, args.base_lm, device=args.device, dtype=args.dtype, search=search
    )


def _search(args):
    return {name: getattr(args, name) for name in SEARCH_OPTIONS}


def _read_line() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


if __name__ == "__main__":
    main()
