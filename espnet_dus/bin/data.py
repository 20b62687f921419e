"""Commands that make data: corpora (stage 1) and stages 2 to 5."""

from typing import Optional, Sequence

from espnet_dus.bin import Commands


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    commands.add(
        "prepare_an4",
        "espnet_dus.bin.data:prepare_an4",
        "Make data directories of CMU AN4, whole or mini.",
    )
    commands.add(
        "prepare_librispeech",
        "espnet_dus.bin.data:prepare_librispeech",
        "Make data directories of LibriSpeech.",
    )
    commands.add(
        "prepare_corpus",
        "espnet_dus.data.corpora.english:prepare_corpus",
        "Write shards of a public English corpus, without the test sets' utterances.",
        {"name": "corpus"},
    )
    commands.add(
        "prepare_owsm",
        "espnet_dus.data.corpora.owsm:prepare_owsm",
        "Take the English ASR part of ESPnet's OWSM v3.2 data directories.",
    )
    commands.add(
        "pydoc_text",
        "espnet_dus.data.corpora.pydoc_text:write_pydoc_text",
        "Write a part of Python's documentation as a text for perplexity.",
        {"path": "out"},
    )
    commands.add(
        "perturb_speed",
        "espnet_dus.data.perturb:perturb_speed",
        "Make a data directory with every utterance at several speeds (stage 2).",
    )
    commands.add(
        "make_tokenizer",
        "espnet_dus.data.speech_tokens.kmeans:make_tokenizer",
        "Make a speech tokenizer, with k-means learned on a training set (stage 3).",
    )
    commands.add(
        "format_data",
        "espnet_dus.data.format:format_data",
        "Dump a data directory's audio or features in one format (stage 3).",
    )
    commands.add(
        "filter_data",
        "espnet_dus.data.filter:filter_data",
        "Leave out utterances by duration, and those without a transcript (stage 4).",
    )
    commands.add(
        "shar",
        "espnet_dus.data.shards.from_data_dir:write_data_dir",
        "Write the shards that streaming training reads (stage 4, feats_type shar and "
        "tokens_shar).",
    )
    commands.add(
        "tokenize_shards",
        "espnet_dus.data.shards.tokenize:tokenize_shards",
        "Write the speech tokens of audio shards (stage 4, feats_type tokens_shar).",
    )
    commands.add(
        "tokens",
        "espnet_dus.bin.data:make_units",
        "Write the token list and make the CTC units (stage 5).",
    )


def prepare_an4(
    corpus: str, num_dev: int, download_dir: str = "downloads", out_dir: str = "data"
) -> None:
    """Find or fetch AN4, and write its data directories.

    Args:
        corpus: AN4's directory, a tar file of it, its URL, or 'espnet' for the few
            utterances in the espnet package.
        num_dev: Number of validation utterances.
        download_dir: Directory for archives.
        out_dir: Parent of the data directories.
    """
    from espnet_dus.data.corpora import an4

    an4.prepare_an4(an4.find_corpus(corpus, download_dir), out_dir, num_dev)


def prepare_librispeech(
    corpus: str = "",
    download_dir: str = "downloads",
    out_dir: str = "data",
    sets: Optional[Sequence[str]] = None,
    nj: int = 1,
) -> None:
    """Find or fetch LibriSpeech, and write its data directories.

    Args:
        corpus: LibriSpeech's directory, with train-clean-100 and the like; without it,
            LibriSpeech is downloaded (60 GB).
        download_dir: Directory for archives.
        out_dir: Parent of the data directories.
        sets: Data directories to make; without it, all (train_960, dev, dev_clean,
            dev_other, test_clean, test_other).
        nj: Number of jobs.

    Raises:
        ValueError: A set is unknown.
    """
    from espnet_dus.data.corpora import librispeech

    known = librispeech.SETS
    if unknown := [name for name in sets or () if name not in known]:
        raise ValueError(f"--sets {' '.join(unknown)}: not among {', '.join(known)}")
    wanted = {name: known[name] for name in sets or known}
    parts = sorted({part for of_set in wanted.values() for part in of_set})
    root = librispeech.find_librispeech(corpus, parts, download_dir)
    librispeech.prepare_librispeech(root, out_dir, wanted, nj)


def make_units(
    base_lm: str,
    text: str,
    out_dir: str,
    shards: Optional[str] = None,
    ctc_token_type: str = "llm",
    nbpe: int = 500,
    cleaner: str = "none",
) -> None:
    """Write the token list and make the CTC units.

    Args:
        base_lm: Base LM directory.
        text: Table of the training transcripts.
        out_dir: Directory to write: tokens.txt and ctc/.
        shards: Training shards, whose transcripts are added: a directory, or a YAML
            file of directories with weights.
        ctc_token_type: llm, bpe, char, or none: no CTC units, only the token list.
        nbpe: Number of units of type bpe.
        cleaner: ESPnet's text cleaner.
    """
    import itertools
    from pathlib import Path

    from espnet2.text.cleaner import TextCleaner
    from transformers import AutoTokenizer

    from espnet_dus.data.ctc_units import CTCUnits, report_special_tokens
    from espnet_dus.data.shards.mix import read_weights
    from espnet_dus.data.shards.shar import read_texts
    from espnet_dus.io import read_scp, write_text
    from espnet_dus.model.base_lm import LOCAL_DATA

    tokenizer = AutoTokenizer.from_pretrained(base_lm, **LOCAL_DATA)
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
