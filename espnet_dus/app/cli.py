#!/usr/bin/env python3
"""Transcribe, ask, chat, inspect and demonstrate models; run the commands of recipes.

MODEL is an experiment directory (exp/dus_x), a checkpoint in one, a pack (.zip) or a
Hugging Face hub id (user/name).
"""

import argparse
import logging
import sys

from espnet_dus.bin import (
    Commands,
    channel,
    data,
    evaluation,
    training,
    user_errors,
    zoo,
)
from espnet_dus.search.config import add_options

SEARCH_OPTIONS = ("beam_size", "ctc_weight")  # of those of the command inference


@user_errors
def main(cmd=None):
    """Run a command."""
    commands = Commands("espnet-dus", __doc__)
    add_commands(commands)
    for module in (data, zoo, training, evaluation):
        module.add_commands(commands)
    commands.run(cmd)


def add_commands(commands: Commands) -> None:
    """Add the commands that use a model."""
    loading = argparse.ArgumentParser(add_help=False)
    loading.add_argument(
        "--base_lm", help="base LM directory of a pack or hub id, to fetch none"
    )
    loading.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    loading.add_argument(
        "--dtype",
        help="precision of the base LM: float32 or bfloat16; default: as in training",
    )
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--model", required=True, help="see espnet-dus --help")
    hearing = argparse.ArgumentParser(add_help=False)
    hearing.add_argument(
        "--channel",
        type=channel,
        default="mean",
        help="channel to take of multi-channel audio: an index from 0, or mean",
    )
    searching = argparse.ArgumentParser(add_help=False)
    add_options(searching, SEARCH_OPTIONS)

    command = commands.add(
        "transcribe",
        transcribe,
        "Transcribe recordings.",
        parents=[named, loading, searching, hearing],
    )
    command.add_argument("audio", nargs="+", help="recordings of any length")
    command.add_argument("--out_dir", help="directory for a file of each recording")
    command.add_argument(
        "--segment_seconds",
        type=float,
        default=20.0,
        help="recordings are cut at pauses into segments of at most this length; "
        "choose the length of the training utterances",
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

    command = commands.add(
        "ask",
        ask,
        "Follow an instruction on a recording.",
        parents=[named, loading, hearing],
    )
    command.add_argument("audio", help="recording of one utterance")
    command.add_argument(
        "instruction", help='what to do with it: "Translate it into French."'
    )
    command.add_argument(
        "--example",
        dest="examples",
        nargs=2,
        action="append",
        default=[],
        metavar=("TEXT", "ANSWER"),
        help="an example utterance as text, and the answer to it; may be repeated",
    )
    command.add_argument(
        "--max_new_tokens", type=int, default=128, help="maximum tokens of an answer"
    )

    commands.add(
        "instruction_eval",
        "espnet_dus.app.instructions:evaluate",
        "Evaluate how models follow instructions on speech: translate, simplify, "
        "summarise, spell, answer. The reference is the base LM on the transcripts.",
        {"models": "model"},
        show=str.rstrip,
    )

    command = commands.add(
        "chat", chat, "Chat in text with the LLM of a model.", parents=[named, loading]
    )
    layers = command.add_mutually_exclusive_group()
    layers.add_argument(
        "--base", action="store_true", help="keep the added layers, show both answers"
    )
    layers.add_argument(
        "--drop",
        action="store_true",
        help="require the added layers to be dropped: the base LM answers, or it is an "
        "error that full fine-tuning has overwritten it",
    )
    command.add_argument(
        "--max_new_tokens", type=int, default=128, help="maximum tokens of an answer"
    )

    command = commands.add("models", models, "List the models on this machine.")
    command.add_argument("--root", default=".", help="directory with exp/ or egs2/")

    command = commands.add(
        "info", info, "Show the stack of a model.", parents=[loading]
    )
    command.add_argument("model", help="see espnet-dus --help")

    command = commands.add(
        "demo",
        demo,
        "Start a demo for the browser.",
        parents=[named, loading, searching],
    )
    command.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0: every network interface"
    )
    command.add_argument("--port", type=int, default=7860, help="port to listen on")

    command = commands.add(
        "serve",
        serve,
        "Serve transcripts and chats over HTTP, as OpenAI's API does. The environment "
        "variable DUS_API_KEY, if set, is the key that requests must send.",
        parents=[named, loading, searching],
    )
    command.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0: every network interface"
    )
    command.add_argument("--port", type=int, default=8000, help="port to listen on")
    for option, default, what in (
        ("--segment_seconds", 20.0, "maximum duration of a segment of a recording"),
        ("--batch_seconds", 60.0, "seconds of segments in a batch, padding included"),
        ("--max_megabytes", 25.0, "maximum size of a request"),
        ("--max_seconds", 3600.0, "maximum duration of a recording"),
    ):
        command.add_argument(option, type=float, default=default, help=what)
    command.add_argument(
        "--max_new_tokens", type=int, default=1024, help="maximum length of an answer"
    )


def transcribe(audio, channel, model, out_dir, segment_seconds, kind, **options):
    """Transcribe each recording; one that fails does not stop the others."""
    import time
    from pathlib import Path

    names = [Path(path).stem for path in audio]
    if out_dir and len(set(names)) < len(names):
        raise ValueError(
            "--out_dir: two recordings have the same name (without folder and suffix), "
            "so their transcripts would share a file: transcribe them one by one"
        )
    speech2text = _load(model, **options)

    from espnet_dus.app.transcription import check_kind, render, transcribe
    from espnet_dus.io import write_text

    check_kind(speech2text, kind)
    failed = 0
    for number, path in enumerate(audio, 1):
        started = time.perf_counter()
        try:
            transcript = transcribe(speech2text, path, segment_seconds, channel=channel)
            text = render(transcript, kind)
        except (RuntimeError, OSError, ValueError) as error:
            failed += 1
            name = "" if path in str(error) else f"{path}: "
            print(f"error: {name}{error}", file=sys.stderr)
            continue
        if out_dir:
            write_text(Path(out_dir, f"{names[number - 1]}.{kind}"), text)
        else:
            many = len(audio) > 1 and kind == "txt"
            print(f"{path}: {text}" if many else text, end="", flush=True)
        print(
            f"{number} of {len(audio)}: {path}, {transcript.seconds:.1f} s of audio "
            f"in {time.perf_counter() - started:.1f} s",
            file=sys.stderr,
        )
    if failed:
        raise RuntimeError(f"{failed} of {len(audio)} recordings failed, see above")


def ask(audio, channel, instruction, model, examples, max_new_tokens, **options):
    """Print the answer while it is generated."""
    speech2text = _load(model, **options)

    from transformers import TextStreamer

    from espnet_dus.app.transcription import answer

    streamer = TextStreamer(
        speech2text.model.tokenizer, skip_prompt=True, skip_special_tokens=True
    )
    options = examples, max_new_tokens, streamer
    answer(speech2text, audio, instruction, *options, channel=channel)


def chat(model, base, drop, max_new_tokens, **options):
    """Answer line by line, each by itself, until an empty one."""
    speech2text = _load(model, **options)
    added_layers = "kept" if base else "dropped" if drop else "auto"
    print("An empty line ends the chat; each line is answered by itself.")
    while question := _read_line():
        asked = question, max_new_tokens
        answer = speech2text.generate_text(*asked, added_layers)
        print(answer, flush=True)
        if base:
            other = speech2text.generate_text(*asked, "dropped")
            print(f"base LM: {'the same' if other == answer else other}", flush=True)


def models(root):
    """Print a table of the models that are found."""
    from tabulate import tabulate

    from espnet_dus.app.local_models import find_models

    found = find_models(root)
    if not found:
        raise ValueError(
            f"no models: no trained experiment in {root}/exp or {root}/egs2/*/dus1/exp,"
            " no pack, and none that was fetched"
        )
    titles = ("MODEL", "adaptation", "base LM", "trained parameters")
    rows = [(*m[:3], "" if m.trained is None else f"{m.trained:,}") for m in found]
    print(tabulate(rows, titles, "plain", disable_numparse=True))


def info(model, **options):
    """Print the parts of a model."""
    loaded = _load(model, **options).model

    from espnet_dus.model.stack import stack_text

    identity = loaded.identity
    print(f"{model}: {loaded.lm.config.model_type}, base LM {identity.name}")
    print(f"(revision {identity.revision or '-'}, sha256 {identity.sha256})\n")
    print(stack_text(loaded), end="")


def demo(model, host, port, **options):
    """Serve the demo until it is interrupted."""
    speech2text = _load(model, **options)

    from espnet_dus.app.demo import build

    build(speech2text).launch(server_name=host, server_port=port)


def serve(model, host, port, base_lm, device, dtype, beam_size, ctc_weight, **serving):
    """Serve a model until it is interrupted."""
    import os
    from pathlib import Path

    search = {"beam_size": beam_size, "ctc_weight": ctc_weight}
    speech2text = _load(model, base_lm, device, dtype, **search)

    import uvicorn

    from espnet_dus.app.server import build

    api_key = os.environ.get("DUS_API_KEY")
    if api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"{host}: all who reach this machine can use the model (set DUS_API_KEY)",
            file=sys.stderr,
        )
    name = Path(model).stem if Path(model).exists() else model  # no paths of ours
    app = build(speech2text, name, api_key, **serving)
    print(f"serving http://{host}:{port}/v1", file=sys.stderr, flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning")


def _load(model, base_lm, device, dtype, **search):
    """Load a model, with a line on stderr first: the imports alone take seconds."""
    print(f"loading {model}", file=sys.stderr, flush=True)
    logging.getLogger().setLevel(logging.WARNING)

    from espnet_dus.app.local_models import load

    return load(model, base_lm, device=device, dtype=dtype, search=search or None)


def _read_line() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""
