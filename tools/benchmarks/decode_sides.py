"""The sides of tools/benchmarks/decode.py: our searches, and the peers' measuring.

Each is a function of the options that runs in a process of its own and returns what it
measured as plain lists and dicts.
"""

import argparse
import logging
import sys
import tempfile
import threading
import time
from pathlib import Path

import decode_peers
import numpy as np

SEARCHES = {
    "greedy": {},
    "CTC draft": {"draft": True},
    "joint beam": {"beam_size": 4, "ctc_weight": 0.5},
}
# name -> module, search, precision
PEERS = {
    "espnet": ("espnet2", "greedy", "float32"),
    "whisper": ("faster_whisper", "greedy", "int8"),
    "pocketsphinx": ("pocketsphinx", "beam", ""),
}
TOKENS_PER_SECOND = 4  # English
NOISE_LEVELS = (-60, -40, -20)  # dB below full scale, beside digital silence
WARM_UP = 2  # utterances
logger = logging.getLogger("benchmark")


def read_data(options):
    """Return utterances (float32 samples) and transcripts by key."""
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
    """Set another search of a loaded model."""
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
            title = f"ours, {dtype}, {name}, batch {batch}"
            found, seconds = transcribe(speech2text, speeches, batch_seconds, title)
            results[name, batch] = found
            row = measured("ours", name, dtype, batch, speeches, seconds)
            row["tokens"] = sum(len(h.token_int) + 1 for h in found.values())
            row["llm_passes"] = sum(h.llm_passes for h in found.values())
            row.update(word_error_rates({k: h.text for k, h in found.items()}, texts))
            rows.append(row)
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
    # what greedy search has really written, EOS and what a guard took back included
    side["tokens"] = {
        key: max(h.llm_passes, 1) for key, h in results["greedy", "1"].items()
    }
    side["long"] = long_speech(speech2text, speeches, options)
    side["inserted"] = inserted_words(speech2text)
    return side


def progress(title, done, total, started):
    """Log how far a side is, ten times in all."""
    if done * 10 // total > (done - 1) * 10 // total:
        took = time.perf_counter() - started
        left = took / done * (total - done)
        logger.info(f"{title}: {done} of {total} in {took:.1f} s, {left:.0f} s left")


def transcribe(speech2text, speeches, batch_seconds, title):
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
    for number, batch in enumerate(batches, 1):
        found.update(zip(batch, speech2text([speeches[key] for key in batch])))
        progress(title, number, len(batches), started)
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
    """Return the keys whose tokens differ."""
    return sorted(key for key in one if one[key].token_int != other[key].token_int)


def word_error_rates(hypotheses, references):
    """Return the rates in percent, as they are and after `normalize`."""
    from espnet_dus.model.espnet_model import word_errors

    words = {w for text in references.values() for w in text.lower().split()}
    vocabulary = {word for word in words if len(word) > 1}
    pairs = [(references[key], hypotheses[key]) for key in references]
    rates = {}
    for name, spell in (
        ("wer", str),
        ("wer_normalized", lambda text: decode_peers.normalize(text, vocabulary)),
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
    positions = 1 / speech2text.positions.step  # a second
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
        logger.info(f"{seconds} s of speech at a time")
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
        logger.info(f"noise, {guards}")
        for name, utterances in audio.items():
            words = sum(len(h.text.split()) for h in speech2text(list(utterances)))
            found[f"{name}, {guards}"] = words * 60 / (seconds * repetitions)
    return found


def peer(options, name, tokens):
    """Measure a peer, one utterance at a time."""
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
        for number, (key, speech) in enumerate(speeches.items(), 1):
            found[key] = system(speech, tokens[key])
            progress(name, number, len(speeches), started)
        seconds = time.perf_counter() - started
    search, dtype = PEERS[name][1:]
    row = measured(name, search, dtype, "1", speeches, seconds)
    if name != "pocketsphinx":
        row["tokens"] = sum(count for _, count in found.values())
    if name != "espnet":  # which is untrained
        row.update(word_error_rates({k: text for k, (text, _) in found.items()}, texts))
    return {"rows": [row]}


def log():
    """Show this script's progress, and the libraries' warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
