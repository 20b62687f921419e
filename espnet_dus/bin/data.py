"""Commands that make data: corpora (stage 1) and stages 2 to 5."""

from espnet_dus.bin import Commands, boolean, call, channel


def add_commands(commands: Commands) -> None:
    """Add the commands of this wing."""
    command = commands.add(
        "prepare_an4", _prepare_an4, "Make data directories of CMU AN4, whole or mini."
    )
    command.add_argument(
        "--corpus",
        required=True,
        help="AN4's directory, a tar file of it, its URL, or 'espnet' for the few "
        "utterances in the espnet package",
    )
    command.add_argument("--download_dir", default="downloads", help="for archives")
    command.add_argument("--out_dir", default="data", help="for the data directories")
    command.add_argument(
        "--num_dev", type=int, required=True, help="number of validation utterances"
    )

    command = commands.add(
        "prepare_librispeech",
        _prepare_librispeech,
        "Make data directories of LibriSpeech.",
    )
    command.add_argument(
        "--corpus",
        default="",
        help="LibriSpeech's directory, with train-clean-100 and the like; without it, "
        "LibriSpeech is downloaded (60 GB)",
    )
    command.add_argument("--download_dir", default="downloads", help="for archives")
    command.add_argument("--out_dir", default="data", help="for the data directories")
    command.add_argument(
        "--sets",
        nargs="+",
        help="data directories to make; without it, all (train_960, dev, dev_clean, "
        "dev_other, test_clean, test_other)",
    )
    command.add_argument("--nj", type=int, default=1, help="number of jobs")

    command = commands.add(
        "prepare_corpus",
        _prepare_corpus,
        "Write shards of a public English corpus, without the test sets' utterances.",
    )
    command.add_argument(
        "--corpus", dest="name", required=True, help="its name; see the recipe"
    )
    command.add_argument("--corpus_dir", required=True, help="directory of the corpus")
    command.add_argument(
        "--out_dir", required=True, help="directory of shards to write"
    )
    command.add_argument("--manifest_dir", required=True, help="for lhotse's manifests")
    command.add_argument(
        "--held_out",
        nargs="+",
        required=True,
        help="data directories whose speakers and sentences must not be trained on",
    )
    command.add_argument("--nj", type=int, default=1, help="number of processes")
    _add_shard_options(command)

    command = commands.add(
        "prepare_owsm",
        _prepare_owsm,
        "Take the English ASR part of ESPnet's OWSM v3.2 data directories.",
    )
    command.add_argument(
        "--data_dirs", nargs="+", required=True, help="ESPnet's data directories"
    )
    command.add_argument("--out_dir", required=True, help="data directory to write")
    command.add_argument(
        "--held_out",
        nargs="+",
        required=True,
        help="data directories whose sentences must not be trained on",
    )

    command = commands.add(
        "pydoc_text",
        call("espnet_dus.data.corpora.pydoc_text:write_pydoc_text"),
        "Write a part of Python's documentation as a text for perplexity.",
    )
    command.add_argument("--out", dest="path", required=True, help="text file to write")

    command = commands.add(
        "perturb_speed",
        call("espnet_dus.data.perturb:perturb_speed"),
        "Make a data directory with every utterance at several speeds (stage 2).",
    )
    command.add_argument("--data_dir", required=True, help="Kaldi data directory")
    command.add_argument(
        "--factors",
        nargs="+",
        required=True,
        help="speed factors; 1.0 keeps the original",
    )
    command.add_argument("--out_dir", required=True, help="data directory to write")

    command = commands.add(
        "make_tokenizer",
        call("espnet_dus.data.speech_tokens.kmeans:make_tokenizer"),
        "Make a speech tokenizer, with k-means learned on a training set (stage 3).",
    )
    command.add_argument("--data_dir", required=True, help="the training set")
    command.add_argument("--out_dir", required=True, help="tokenizer directory")
    command.add_argument(
        "--tokenizer",
        required=True,
        help="logmel, whisper_tiny_en, opuslm, a YAML file with the options of an "
        "encoder, or the directory of a tokenizer to copy",
    )
    command.add_argument("--num_clusters", type=int, help="of k-means (default: 500)")
    command.add_argument(
        "--remove_repeats",
        type=boolean,
        default=False,
        help="leave out tokens that repeat the one before (single streams)",
    )
    command.add_argument(
        "--kmeans_hours",
        type=float,
        default=5.0,
        help="hours of audio, drawn at random, to learn k-means on; they take 0.7 MB "
        "of memory an hour for each dimension of the encoder",
    )
    command.add_argument("--seed", type=int, default=0, help="of k-means")
    command.add_argument("--nj", type=int, default=1, help="number of processes")
    _add_reading_options(command)

    command = commands.add(
        "format_data",
        _format_data,
        "Dump a data directory's audio or features in one format (stage 3).",
    )
    command.add_argument("--data_dir", required=True, help="Kaldi data directory")
    command.add_argument("--out_dir", required=True, help="directory to write")
    command.add_argument(
        "--feats_type",
        choices=["raw", "fbank", "tokens"],
        default="raw",
        help="raw: audio files; fbank: the frontend's log-mel features as Kaldi ark; "
        "tokens: speech tokens as Kaldi ark",
    )
    command.add_argument(
        "--speech_tokenizer", help="directory of the tokenizer (feats_type tokens)"
    )
    command.add_argument("--fs", default="16k", help="sampling rate, 16k or 16000")
    command.add_argument(
        "--audio_format",
        choices=["flac", "wav"],
        default="flac",
        help="format of the audio files (feats_type raw)",
    )
    command.add_argument("--nj", type=int, default=1, help="number of processes")
    command.add_argument(
        "--max_bad_utterances",
        type=int,
        default=0,
        help="number of utterances that may be left out because their audio is faulty",
    )
    _add_reading_options(command)

    command = commands.add(
        "filter_data",
        call("espnet_dus.data.filter:filter_data"),
        "Leave out utterances by duration, and those without a transcript (stage 4).",
    )
    command.add_argument("--in_dir", required=True, help="directory from stage 3")
    command.add_argument("--out_dir", required=True, help="directory to write")
    for name, default, what in (
        ("min", 0.1, "longer"),
        ("max", 20.0, "shorter"),
    ):
        command.add_argument(
            f"--{name}_wav_duration",
            type=float,
            default=default,
            help=f"seconds; an utterance must be {what}",
        )

    command = commands.add(
        "shar",
        call("espnet_dus.data.shards.shar:write_data_dir"),
        "Write the shards that streaming training reads (stage 4, feats_type shar and "
        "tokens_shar).",
    )
    command.add_argument(
        "--data_dir", required=True, help="dump of audio or speech tokens from stage 3"
    )
    command.add_argument(
        "--out_dir", required=True, help="directory of shards to write"
    )
    command.add_argument("--nj", type=int, default=1, help="number of processes")
    _add_shard_options(command)

    command = commands.add(
        "tokenize_shards",
        call("espnet_dus.data.shards.tokenize:tokenize_shards"),
        "Write the speech tokens of audio shards (stage 4, feats_type tokens_shar).",
    )
    command.add_argument(
        "--shards",
        required=True,
        help="a directory of audio shards, or a YAML file of directories with weights",
    )
    command.add_argument(
        "--out_dir",
        required=True,
        help="for a directory of token shards of each, and mix.yaml, which names them",
    )
    command.add_argument(
        "--speech_tokenizer", required=True, help="directory of the tokenizer"
    )
    command.add_argument("--nj", type=int, default=1, help="number of processes")
    command.add_argument(
        "--job",
        default="1/1",
        help="K/N: do the K-th of N parts, so that machines share the work; a run "
        "without it then completes the directories",
    )
    _add_bad_option(command)

    command = commands.add(
        "tokens", _tokens, "Write the token list and make the CTC units (stage 5)."
    )
    command.add_argument("--base_lm", required=True, help="base LM directory")
    command.add_argument("--text", required=True, help="transcripts of the training")
    command.add_argument(
        "--shards",
        help="training shards, whose transcripts count too: a directory, or a YAML of "
        "directories with weights",
    )
    command.add_argument("--out_dir", required=True, help="for tokens.txt and ctc/")
    command.add_argument(
        "--ctc_token_type",
        default="llm",
        help="llm, bpe, char, or none: no CTC units, only the token list",
    )
    command.add_argument("--nbpe", type=int, default=500, help="units of type bpe")
    command.add_argument("--cleaner", default="none", help="ESPnet's text cleaner")


def _add_reading_options(command) -> None:
    command.add_argument(
        "--allow_pipes",
        type=boolean,
        default=False,
        help="run the commands in wav.scp ('... |'). They can do whatever you can: "
        "only for data that you trust",
    )
    command.add_argument(
        "--channel",
        type=channel,
        help="channel to take of multi-channel audio: an index from 0, or mean; "
        "without it, several channels are a fault",
    )


def _add_shard_options(command) -> None:
    command.add_argument(
        "--shard_size",
        type=int,
        default=1000,
        help="utterances in a shard. There must be at least as many shards as GPUs "
        "times data loading processes (num_workers)",
    )
    _add_bad_option(command)


def _add_bad_option(command) -> None:
    command.add_argument(
        "--max_bad_utterances",
        type=int,
        default=0,
        help="number of utterances that may be left out because of unreadable audio",
    )


def _prepare_an4(corpus, download_dir, out_dir, num_dev):
    from espnet_dus.data.corpora.an4 import find_corpus, prepare_an4

    prepare_an4(find_corpus(corpus, download_dir), out_dir, num_dev)


def _prepare_librispeech(corpus, download_dir, out_dir, sets, nj):
    from espnet_dus.data.corpora.librispeech import (
        SETS,
        find_librispeech,
        prepare_librispeech,
    )

    names = sets or list(SETS)
    if unknown := [name for name in names if name not in SETS]:
        raise ValueError(f"--sets {' '.join(unknown)}: not among {', '.join(SETS)}")
    wanted = {name: SETS[name] for name in names}
    parts = sorted({part for of_set in wanted.values() for part in of_set})
    root = find_librispeech(corpus, parts, download_dir)
    prepare_librispeech(root, out_dir, wanted, nj)


def _prepare_corpus(held_out, **options):
    from espnet_dus.data.corpora.english import prepare_corpus
    from espnet_dus.data.corpora.held_out import HeldOut

    prepare_corpus(held_out=HeldOut.read(held_out), **options)


def _prepare_owsm(data_dirs, out_dir, held_out):
    from espnet_dus.data.corpora.held_out import HeldOut
    from espnet_dus.data.corpora.owsm import prepare_owsm

    prepare_owsm(data_dirs, out_dir, HeldOut.read(held_out))


def _format_data(fs, **options):
    from espnet_dus.data.audio import parse_fs
    from espnet_dus.data.format import format_data

    format_data(fs=parse_fs(fs), **options)


def _tokens(base_lm, text, shards, out_dir, ctc_token_type, nbpe, cleaner):
    import itertools
    from pathlib import Path

    from espnet2.text.cleaner import TextCleaner
    from transformers import AutoTokenizer

    from espnet_dus.data.ctc_units import CTCUnits, report_special_tokens
    from espnet_dus.data.shards.mix import read_weights
    from espnet_dus.data.shards.shar import read_texts
    from espnet_dus.io import read_scp, write_text

    tokenizer = AutoTokenizer.from_pretrained(base_lm, local_files_only=True)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    write_text(Path(out_dir, "tokens.txt"), "".join(f"{token}\n" for token in tokens))
    if ctc_token_type != "none":
        clean = TextCleaner(None if cleaner == "none" else cleaner)
        texts = itertools.chain(
            read_scp(text).values(),
            *map(read_texts, read_weights(shards) if shards else ()),
        )
        texts = report_special_tokens(map(clean, texts), tokenizer)
        CTCUnits.make(Path(out_dir, "ctc"), ctc_token_type, texts, tokenizer, nbpe)
