"""LibriSpeech's own directory layout to Kaldi data directories."""

import logging
from pathlib import Path
from typing import Dict, List, Sequence, Union

from espnet_dus.data.corpora.download import download, extract_one
from espnet_dus.data.data_dir import DataDir

URL = "https://www.openslr.org/resources/12"
# MD5 of the archives, as OpenSLR gives them.
ARCHIVES = {
    "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360": "c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500": "d1a0fd59409feb2c614ce4d30c387708",
}
# Data directory -> the corpus's parts. dev: both, for validation.
SETS = {
    "train_960": ["train-clean-100", "train-clean-360", "train-other-500"],
    "dev": ["dev-clean", "dev-other"],
    "dev_clean": ["dev-clean"],
    "dev_other": ["dev-other"],
    "test_clean": ["test-clean"],
    "test_other": ["test-other"],
}


def find_librispeech(
    corpus: str, parts: Sequence[str], download_dir: Union[str, Path], url: str = URL
) -> Path:
    """Find the corpus; without a place for it, its parts are downloaded.

    Args:
        corpus: LibriSpeech's directory, or the one that it is in; "": download.
        parts: What is needed, such as `dev-clean`.
        download_dir: For the archives and what is in them; 60 GB and as much again.
        url: Where the archives are.

    Returns:
        The directory with the parts.

    Raises:
        ValueError: A part is not there, or an archive is damaged.
        RuntimeError: A download fails.
    """
    if corpus:
        roots = [Path(corpus), Path(corpus, "LibriSpeech")]
        for root in roots:
            if any((root / part).is_dir() for part in ARCHIVES):
                break
        else:
            raise ValueError(f"{corpus}: no LibriSpeech there ({', '.join(ARCHIVES)})")
        missing = [part for part in parts if not (root / part).is_dir()]
        if missing:
            raise ValueError(f"{root}: the part(s) {', '.join(missing)} are missing")
        return root
    root = Path(download_dir, "LibriSpeech")
    for part in parts:
        if (root / part).is_dir():
            continue
        archive = Path(download_dir, f"{part}.tar.gz")
        if not archive.is_file():
            download(f"{url}/{part}.tar.gz", archive, md5=ARCHIVES[part])
        extract_one(archive, root / part, lambda path: path.name == part, part)
    return root


def prepare_librispeech(
    root: Union[str, Path],
    out_dir: Union[str, Path],
    sets: Dict[str, List[str]] = SETS,
) -> Dict[str, DataDir]:
    """Write data directories.

    A speaker and chapter, as in ESPnet's recipe, is a Kaldi speaker. Transcripts are in
    lower case, whose words the base LM knows.

    Args:
        root: LibriSpeech's directory.
        out_dir: Where the data directories go.
        sets: Which parts each of them holds.

    Returns:
        What was written, by name.

    Raises:
        ValueError: A transcript or an audio file is not as expected.
    """
    written, known = {}, {}
    for name, parts in sets.items():
        for part in parts:
            if part not in known:
                known[part] = _read_part(Path(root, part))
        data = DataDir.combine([known[part] for part in parts])
        data.write(Path(out_dir, name))
        logging.info("%s: %d utterances", Path(out_dir, name), len(data))
        written[name] = data
    return written


def _read_part(path: Path) -> DataDir:
    text, wav_scp, utt2spk = {}, {}, {}
    for table in sorted(path.glob("*/*/*.trans.txt")):
        chapter = table.name.removesuffix(".trans.txt")  # <reader>-<chapter>
        lines = table.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            key, _, words = line.partition(" ")
            audio = table.with_name(f"{key}.flac")
            if not key.startswith(f"{chapter}-") or not words.strip():
                raise ValueError(
                    f"{table}:{number}: expected '{chapter}-<number> WORDS', "
                    f"got '{line}'"
                )
            if not audio.is_file():
                raise ValueError(f"{table}:{number}: {audio}: no such file")
            text[key] = words.strip().lower()
            wav_scp[key] = str(audio)
            utt2spk[key] = chapter
    data = DataDir(path, {"text": text, "wav.scp": wav_scp, "utt2spk": utt2spk})
    data.validate()
    return data
