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
import logging
import multiprocessing
import os
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

SEARCHES = {
    "greedy": {},
    "CTC draft": {"draft": True},
    "joint beam": {"beam_size": 4, "ctc_weight": 0.3},
}
# name -> module, search, precision
PEERS = {
    "espnet": ("espnet2", "greedy", "float32"),
    "whisper": ("faster_whisper", "greedy", "int8"),
    "pocketsphinx": ("pocketsphinx", "beam", ""),
}
REFERENCE = ("greedy", "1")  # what the ratios of our searches refer to
SECONDS = (10, 30, 60)  # of speech, for the cost of a token
TOKENS_PER_SECOND = 4  # English
NOISE_LEVELS = (-60, -40, -20)  # dB below full scale, beside digital silence
WARM_UP = 2  # utterances


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
    add("--long", type=int, nargs="*", default=SECONDS, help="seconds of long speech")
    add("--output", type=Path, help="JSON file; not given: none")
    return parser


# -- the sides, each in a process of its own -------------------------------------------


def read_data(options):
    """Give utterances (float32 samples) and transcripts by key."""
    from espnet2.train.dataset import ESPnetDataset

    from espnet_dus.io import read_scp

    keys = list(read_scp(options.data_dir / "wav.scp"))[: options.utterances]
    triple = (str(options.data_dir / "wav.scp"), "speech", "sound")
    dataset = ESPnetDataset([triple])
    speeches = {key: dataset[key][1]["speech"].astype(np.float32) for key in keys}
    texts = read_scp(options.data_dir / "text")
    return speeches, {key: texts[key] for key in keys}


def load(options, dtype):
    """Load our model."""
    from espnet_dus.search.speech2text import Speech2Text

    return Speech2Text(
        options.exp_dir / "config.yaml", options.asr_model_file, dtype=dtype
    )


def set_search(speech2text, **search):
    """Give a loaded model another search."""
    from espnet_dus.search.config import SearchConfig

    speech2text.search = SearchConfig.make(search)


def ours(options, dtype):
    """Measure our searches in one precision."""
    speech2text = load(options, dtype)
    speeches, texts = read_data(options)
    rows, results = [], {}
    for name, search in SEARCHES.items():
        set_search(speech2text, **search)
        for batch, batch_seconds in (("1", 0.0), ("many", options.batch_size)):
            found, seconds = transcribe(speech2text, speeches, batch_seconds)
            results[name, batch] = found
            row = measured("ours", name, dtype, batch, speeches, seconds)
            row["tokens"] = sum(len(h.token_int) + 1 for h in found.values())
            row["llm_passes"] = sum(h.llm_passes for h in found.values())
            row.update(word_error_rates({k: h.text for k, h in found.items()}, texts))
            rows.append(row)
            logging.info(f"ours, {dtype}: {row}")
    side = {"rows": rows}
    side["differing"] = {
        f"{name}: batched and batch 1": different(
            results[name, "1"], results[name, "many"]
        )
        for name in SEARCHES
    }
    side["differing"]["CTC draft and greedy"] = different(
        results["greedy", "1"], results["CTC draft", "1"]
    )
    side["tokens"] = {
        key: len(h.token_int) + 1 for key, h in results["greedy", "1"].items()
    }
    side["long"] = long_speech(speech2text, speeches, options)
    side["inserted"] = inserted_words(speech2text)
    return side


def transcribe(speech2text, speeches, batch_seconds):
    """Transcribe all utterances, in batches as `dus_inference` makes them.

    Returns:
        Hypotheses by key, and the seconds it took.
    """
    from espnet_dus.search.decode import take_batch

    lengths = {key: len(speech) for key, speech in speeches.items()}
    waiting = sorted(lengths, key=lambda key: -lengths[key])
    batches = []
    while waiting:
        batches.append(take_batch(waiting, lengths, batch_seconds * speech2text.fs))
        del waiting[: len(batches[-1])]
    # the first batch has the longest: with it, all memory is there
    speech2text([speeches[key] for key in batches[0]])
    found = {}
    started = time.perf_counter()
    for batch in batches:
        found.update(zip(batch, speech2text([speeches[key] for key in batch])))
    return found, time.perf_counter() - started


def measured(system, search, dtype, batch, speeches, seconds):
    """Make a row of the table."""
    audio = sum(map(len, speeches.values())) / 16000
    return dict(
        system=system,
        search=search,
        precision=dtype,
        batch=batch,
        audio_seconds=audio,
        seconds=seconds,
        rtfx=audio / seconds,
    )


def different(one, other):
    """Give the keys whose tokens differ."""
    return sorted(key for key in one if one[key].token_int != other[key].token_int)


def word_error_rates(hypotheses, references):
    """Give the rates in percent, as they stand and after `normalize`."""
    from decode_peers import normalize

    from espnet_dus.ctc import word_errors

    words = {w for text in references.values() for w in text.lower().split()}
    vocabulary = {word for word in words if len(word) > 1}
    pairs = [(references[key], hypotheses[key]) for key in references]
    rates = {}
    for name, spell in (
        ("wer", str),
        ("wer_normalized", lambda text: normalize(text, vocabulary)),
    ):
        sides = [[spell(text) for text in side] for side in zip(*pairs)]
        errors, count = word_errors(*sides)
        rates[name] = 100 * errors / max(count, 1)
    return rates


class Memory(threading.Thread):
    """Watches the resident memory of this process while a block runs."""

    def __enter__(self):
        """Start to watch."""
        import psutil

        self.process, self.peak = psutil.Process(), 0
        self.done = threading.Event()
        self.start()
        return self

    def run(self):
        """Look every few milliseconds."""
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_):
        """Stop."""
        self.done.set()
        self.join()
        self.peak = max(self.peak, self.process.memory_info().rss)


def long_speech(speech2text, speeches, options):
    """Measure what a token costs, and memory, by the length of the speech.

    As many tokens a second as in English are forced: a token that the model never
    writes takes the place of EOS, and no guard acts but the one against length.
    """
    positions = 1 / speech2text.seconds_per_position  # a second
    model = speech2text.model
    eos_id, model.eos_id = model.eos_id, model.tokenizer.unk_token_id
    set_search(
        speech2text,
        maxlenratio=TOKENS_PER_SECOND / positions,
        repetition=0,
        no_speech=0.0,
    )
    speech = np.concatenate(list(speeches.values()))
    found = []
    for seconds in options.long:
        audio = np.resize(speech, seconds * 16000)
        speech2text(audio)  # warm-up
        started = time.perf_counter()
        with Memory() as memory:
            (hypothesis,) = speech2text(audio)
        took = time.perf_counter() - started
        tokens = len(hypothesis.token_int)
        found.append(
            dict(
                audio_seconds=seconds,
                tokens=tokens,
                seconds=took,
                ms_per_token=1000 * took / max(tokens, 1),
                peak_mb=memory.peak / 1e6,
            )
        )
    model.eos_id = eos_id
    return found


def inserted_words(speech2text, seconds=5, repetitions=4):
    """Count words a minute in silence and white noise, with the guards and without."""
    generator = np.random.default_rng(0)
    shape = (repetitions, seconds * 16000)
    audio = {"silence": np.zeros(shape, np.float32)}
    for level in NOISE_LEVELS:
        noise = generator.standard_normal(shape) * 10 ** (level / 20)
        audio[f"noise, {level} dB"] = noise.astype(np.float32)
    found = {}
    for guards, search in (
        ("guards", {}),
        ("no guard", {"repetition": 0, "no_speech": 0.0}),
    ):
        set_search(speech2text, **search)
        for name, utterances in audio.items():
            words = sum(len(h.text.split()) for h in speech2text(list(utterances)))
            found[f"{name}, {guards}"] = words * 60 / (seconds * repetitions)
    return found


def peer(options, name, tokens):
    """Measure a peer, one utterance at a time."""
    import decode_peers
    import yaml

    speeches, texts = read_data(options)
    with tempfile.TemporaryDirectory() as directory:
        if name == "espnet":
            config = yaml.safe_load(
                (options.exp_dir / "config.yaml").read_text("utf-8")
            )
            system = decode_peers.ESPnet(argparse.Namespace(**config), Path(directory))
        elif name == "whisper":
            system = decode_peers.FasterWhisper(options.whisper, options.threads)
        else:
            system = decode_peers.PocketSphinx()
        for key in list(speeches)[:WARM_UP]:
            system(speeches[key], tokens[key])
        found = {}
        started = time.perf_counter()
        for key, speech in speeches.items():
            found[key] = system(speech, tokens[key])
        seconds = time.perf_counter() - started
    search, dtype = PEERS[name][1:]
    row = measured(name, search, dtype, "1", speeches, seconds)
    if name != "pocketsphinx":
        row["tokens"] = sum(count for _, count in found.values())
    if name != "espnet":  # which is untrained
        row.update(word_error_rates({k: text for k, (text, _) in found.items()}, texts))
    return {"rows": [row]}


def in_a_process(options, side, *args):
    """Run a side in a fresh process; give what it measured."""
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when torch is imported
    with multiprocessing.get_context("spawn").Pool(1, start, [options]) as pool:
        return pool.apply(side, (options, *args))


def start(options):
    """Prepare a side's process."""
    import torch

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    torch.set_num_threads(options.threads)


# -- the report ------------------------------------------------------------------------


def available(options):
    """Give the peers that can run here, and say which cannot."""
    for name in options.peers:
        if importlib.util.find_spec(PEERS[name][0]) is None:
            logging.warning(f"{name} is left out: it is not installed")
        elif name == "whisper" and options.whisper is None:
            logging.warning("whisper is left out: give --whisper MODEL_DIRECTORY")
        else:
            yield name


def ratios(rows):
    """Give the ratios of RTFx that the table is read for."""
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
    """Give a Markdown table, the first column left, the others right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def report(result):
    """Give the Markdown of a result."""

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
        rows = [[name, f"{rate:.1f}"] for name, rate in side["inserted"].items()]
        yield table([f"words inserted a minute, {dtype}", ""], rows)
    conditions = result["conditions"]
    yield ", ".join(f"{name}: {value}" for name, value in conditions.items()) + "."


def main(cmd=None):
    """Measure and print."""
    options = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options.asr_model_file = (
        options.asr_model_file or options.exp_dir / "valid.acc.ave.pth"
    )
    result = {"rows": [], "ours": {}}
    for dtype in options.dtypes:
        logging.info(f"ours, {dtype}")
        side = in_a_process(options, ours, dtype)
        result["rows"] += side.pop("rows")
        result["ours"][dtype] = side
    tokens = result["ours"][options.dtypes[0]]["tokens"]
    for name in available(options):
        logging.info(name)
        result["rows"] += in_a_process(options, peer, name, tokens)["rows"]
    result["ratios"] = ratios(result["rows"])
    result["conditions"] = dict(
        utterances=len(tokens),
        audio_seconds=round(result["rows"][0]["audio_seconds"], 1),
        threads=options.threads,
        machine=platform.machine(),
        experiment=options.exp_dir.name,
    )
    if options.output:
        from espnet_dus.io import write_text

        write_text(options.output, json.dumps(result, indent=1) + "\n")
    print("\n\n".join(report(result)))


if __name__ == "__main__":
    main()
