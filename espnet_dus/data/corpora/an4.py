"""CMU AN4, complete or mini, as Kaldi data directories."""

import importlib.metadata
import logging
import os
import re
from pathlib import Path
from typing import Dict, Union

from espnet_dus.data.corpora.download import download, extract_one
from espnet_dus.data.data_dir import DataDir

# The archive of ESPnet's mini_an4 recipe, as the espnet package carries it.
MINI_ARCHIVE = "egs3/mini_an4/esp2_asr/downloads.tar.gz"
AUDIO_DIRS = {"train": "an4_clstk", "test": "an4test_clstk"}
# <s> MARCH THIRD </s> (cen8-fbbh-b); some files have no <s> and </s>.
TRANSCRIPT = re.compile(r"(?:<s> )?(.*?)(?: </s>)? \((\w+)-(\w+)-(\w+)\)")


def find_corpus(corpus: str, download_dir: Union[str, Path]) -> Path:
    """Find AN4's directory; download and extract it if necessary.

    Args:
        corpus: AN4's directory (with `etc` and `wav`), a tar file of it, the URL of
            such a file, or `espnet` for the few utterances in the espnet package.
        download_dir: For an archive, which is extracted to `an4` there.

    Returns:
        The directory with `etc` and `wav`.

    Raises:
        ValueError: `corpus` holds no AN4, or its archive is damaged or would write
            outside `download_dir`.
        RuntimeError: The download failed.
    """
    if os.path.isdir(corpus):
        for root in (Path(corpus), Path(corpus, "an4")):
            if _is_an4(root):
                return root
        raise ValueError(f"{corpus}: no etc/an4_train.transcription in it")
    root = Path(download_dir, "an4")
    if _is_an4(root):
        return root
    if corpus == "espnet":
        archive = Path(importlib.metadata.distribution("espnet").locate_file(""))
        archive /= MINI_ARCHIVE
    elif re.match("https?://", corpus):
        archive = Path(download_dir, corpus.rsplit("/", 1)[1])
        if not archive.exists():
            download(corpus, archive)
    else:
        archive = Path(corpus)
    if not archive.is_file():
        raise ValueError(f"{archive}: no such file. Name AN4's directory in db.sh")
    extract_one(archive, root, _is_an4, "AN4")
    return root


def _is_an4(root: Path) -> bool:
    return (root / "etc" / "an4_train.transcription").is_file()


def prepare_an4(
    root: Union[str, Path], out_dir: Union[str, Path], num_dev: int
) -> Dict[str, DataDir]:
    """Write the data directories `train`, `train_nodev`, `train_dev` and `test`.

    The split is ESPnet's: the first `num_dev` utterances of `train`, sorted by key, are
    the validation set, the others `train_nodev`. wav.scp names the .sph files, which
    libsndfile reads.

    Args:
        root: AN4's directory, with `etc` and `wav`.
        out_dir: The parent of the data directories.
        num_dev: Number of validation utterances.

    Returns:
        The data directories, by name.

    Raises:
        ValueError: A transcript or an audio file is not as expected, or the training
            set has no more than `num_dev` utterances.
    """
    train = _read_set(Path(root), "train")
    keys = sorted(train.tables["text"])
    if not 0 < num_dev < len(keys):
        raise ValueError(
            f"expected a number of validation utterances from 1 to {len(keys) - 1} "
            f"of {len(keys)}, got {num_dev}"
        )
    sets = {
        "train": train,
        "train_nodev": train.subset(keys[num_dev:]),
        "train_dev": train.subset(keys[:num_dev]),
        "test": _read_set(Path(root), "test"),
    }
    for name, data in sets.items():
        data.write(Path(out_dir, name))
        logging.info("%s: %d utterances", Path(out_dir, name), len(data))
    return sets


def _read_set(root: Path, name: str) -> DataDir:
    path = root / "etc" / f"an4_{name}.transcription"
    text, wav_scp, utt2spk = {}, {}, {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        match = TRANSCRIPT.fullmatch(line.strip())
        if match is None:
            raise ValueError(
                f"{path}:{number}: expected '<s> WORDS </s> (utterance-speaker-b)', "
                f"got '{line}'"
            )
        words, utterance, speaker, suffix = match.groups()
        # The speaker comes first, so that Kaldi's sorting keeps speakers together.
        key = f"{speaker}-{utterance}-{suffix}"
        audio = root.joinpath(
            "wav", AUDIO_DIRS[name], speaker, f"{utterance}-{speaker}-{suffix}.sph"
        )
        if not audio.is_file():
            raise ValueError(f"{path}:{number}: {audio}: no such file")
        # In lower case: "eleven" is one token of the base LM, ELEVEN is several rare
        # ones.
        text[key] = words.lower()
        wav_scp[key] = str(audio)
        utt2spk[key] = speaker
    tables = {"text": text, "wav.scp": wav_scp, "utt2spk": utt2spk}
    data = DataDir(path, tables)
    data.validate()
    return data
