#!/usr/bin/env python3
"""Decoding speed: our searches and their peers on the same machine, audio and weights.

RTFx is that of the Open ASR Leaderboard: seconds of audio / seconds of transcription,
over all utterances, after a warm-up. Every side runs in a process of its own, one after
the other. A peer that is not installed, or whose model is not given, is left out.

- ours: greedy, CTC draft + verification and joint beam search, one utterance at a time
  and batched (sorted by length); whether a batch gives what batch 1 gives; what a token
  costs at 10, 30 and 60 s of speech; memory; words inserted into noise and silence.
- ESPnet: its own path for a decoder-only LLM (`decoder: hugging_face_transformers`), in
  float32, which is all that it has; untrained, with our number of tokens forced.
- faster-whisper (int8, greedy) and pocketsphinx, with word error rates.

    cd egs2/an4/dus1 && . ./path.sh
    ../../../tools/benchmarks/decode.py exp/dus_x dump/raw/test --utterances 8
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
from pathlib import Path

from decode_sides import PEERS, log, logger, ours, peer

REFERENCE = ("greedy", "1")  # what the ratios of our searches refer to


def get_parser():
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("exp_dir", type=Path, help="holds config.yaml")
    add("data_dir", type=Path, help="holds wav.scp and text, such as dump/raw/test")
    add("--asr_model_file", type=Path, help="not given: EXP_DIR/valid.acc.ave.pth")
    add("--utterances", type=int, help="only the first ones, for a quick look")
    add("--batch_size", type=float, default=120.0, help="seconds of a batch, padded")
    add("--threads", type=int, default=os.cpu_count(), help="of every side")
    add("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of our base LM")
    add("--whisper", help="directory of faster-whisper's model")
    add("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    add(
        "--long",
        type=int,
        nargs="*",
        default=[10, 30, 60],
        help="seconds of long speech",
    )
    add("--output", type=Path, help="JSON file; not given: none")
    return parser


def in_a_process(options, side, *args):
    """Run a side in a fresh process and return its measurements."""
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when torch is imported
    with multiprocessing.get_context("spawn").Pool(1, start, [options]) as pool:
        return pool.apply(side, (options, *args))


def start(options):
    """Prepare a side's process."""
    import torch

    log()
    torch.set_num_threads(options.threads)


# -- the report ------------------------------------------------------------------------


def available(options):
    """Return the peers that can run here, and log which cannot."""
    for name in options.peers:
        if importlib.util.find_spec(PEERS[name][0]) is None:
            logger.warning(f"{name} is left out: it is not installed")
        elif name == "whisper" and options.whisper is None:
            logger.warning("whisper is left out: give --whisper MODEL_DIRECTORY")
        else:
            yield name


def ratios(rows):
    """Return the main ratios of RTFx."""
    by_name = {(r["system"], r["precision"], r["search"], r["batch"]): r for r in rows}
    found = {}
    for (system, dtype, search, batch), row in by_name.items():
        if system != "ours":
            continue
        base = by_name["ours", dtype, *REFERENCE]
        name = f"{search}, batch {batch}, {dtype}"
        if (search, batch) != REFERENCE:
            found[f"{name} / greedy, batch 1"] = row["rtfx"] / base["rtfx"]
        for peer_row in (r for r in rows if r["system"] != "ours"):
            found[f"{name} / {peer_row['system']}"] = row["rtfx"] / peer_row["rtfx"]
    return found


def table(header, rows):
    """Return a Markdown table, the first column left, the others right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def report(result):
    """Return the Markdown of a result."""

    def cell(row, key, form):
        return form.format(row[key]) if key in row else ""

    rows = []
    for row in result["rows"]:
        per_token = {}
        if row.get("tokens"):
            per_token["ms"] = 1000 * row["seconds"] / row["tokens"]
        rows.append(
            [f"{row['system']}, {row['search']}", row["precision"], row["batch"]]
            + [f"{row['seconds']:.2f}", f"{row['rtfx']:.1f}"]
            + [row.get("tokens", ""), cell(per_token, "ms", "{:.1f}")]
            + [row.get("llm_passes", ""), cell(row, "wer", "{:.1f}")]
            + [cell(row, "wer_normalized", "{:.1f}")]
        )
    header = ["system", "precision", "batch", "s", "RTFx", "tokens", "ms/token"]
    yield table(header + ["LLM passes", "WER", "WER normalized"], rows)
    rows = [[name, f"{ratio:.2f}"] for name, ratio in result["ratios"].items()]
    yield table(["ratio of RTFx", ""], rows)
    for dtype, side in result["ours"].items():
        rows = [[name, len(keys)] for name, keys in side["differing"].items()]
        yield table([f"utterances that differ, {dtype}", ""], rows)
        rows = [
            [f"{r['audio_seconds']} s", r["tokens"], f"{r['ms_per_token']:.1f}"]
            + [f"{r['peak_mb']:.0f}"]
            for r in side["long"]
        ]
        yield table([f"speech, {dtype}", "tokens", "ms/token", "peak MB"], rows)
        if len(rows) > 1:
            first, last = side["long"][0], side["long"][-1]
            memory = last["peak_mb"] - first["peak_mb"]
            memory /= last["audio_seconds"] - first["audio_seconds"]
            yield f"Memory for each further second of speech: {memory:.2f} MB."
        rows = [[name, f"{rate:.1f}"] for name, rate in side["inserted"].items()]
        yield table([f"words inserted a minute, {dtype}", ""], rows)
    conditions = result["conditions"]
    yield ", ".join(f"{name}: {value}" for name, value in conditions.items()) + "."


def main(cmd=None):
    """Measure and print."""
    options = get_parser().parse_args(cmd)
    log()
    options.asr_model_file = (
        options.asr_model_file or options.exp_dir / "valid.acc.ave.pth"
    )
    result = {"rows": [], "ours": {}}
    for dtype in options.dtypes:
        logger.info(f"ours, {dtype}")
        side = in_a_process(options, ours, dtype)
        result["rows"] += side.pop("rows")
        result["ours"][dtype] = side
    tokens = result["ours"][options.dtypes[0]]["tokens"]
    for name in available(options):
        logger.info(name)
        result["rows"] += in_a_process(options, peer, name, tokens)["rows"]
    result["ratios"] = ratios(result["rows"])
    result["conditions"] = dict(
        utterances=len(tokens),
        audio_seconds=round(result["rows"][0]["audio_seconds"], 1),
        threads=options.threads,
        batch_seconds=options.batch_size,
        machine=platform.machine(),
        experiment=options.exp_dir.name,
    )
    if options.output:
        from espnet_dus.io import write_text

        write_text(options.output, json.dumps(result, indent=1) + "\n")
    print("\n\n".join(report(result)))


if __name__ == "__main__":
    main()
