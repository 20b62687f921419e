"""LibriSpeech as Kaldi data directories, prepared by lhotse."""

import logging
from pathlib import Path
from typing import Dict, List, Sequence, Union

from espnet_dus.data.corpora.download import download, extract_one
from espnet_dus.data.corpora.lhotse_corpus import LhotseCorpus
from espnet_dus.data.data_dir import DataDir

URL = "https://www.openslr.org/resources/12"
# MD5 of the archives, from OpenSLR.
ARCHIVES = {
    "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360": "c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500": "d1a0fd59409feb2c614ce4d30c387708",
}
# Parts of the corpus by data directory. `dev` is for validation.
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
    """Find the corpus, or download its parts.

    Args:
        corpus: LibriSpeech's directory, or its parent; "": download.
        parts: The parts needed, such as `dev-clean`.
        download_dir: Directory for the archives and their contents, 60 GB each.
        url: Where the archives are.

    Returns:
        The directory with the parts.

    Raises:
        ValueError: A part is missing, or an archive is damaged.
        RuntimeError: A download fails.
    """
    if corpus:
        roots = [Path(corpus), Path(corpus, "LibriSpeech")]
        found = [root for root in roots if any((root / p).is_dir() for p in ARCHIVES)]
        if not found:
            raise ValueError(f"{corpus}: no LibriSpeech there ({', '.join(ARCHIVES)})")
        root = found[0]
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
    nj: int = 1,
) -> Dict[str, DataDir]:
    """Write data directories.

    A reader in a chapter is a Kaldi speaker, as in ESPnet's recipe. Transcripts are in
    lower case, whose words the base LM knows.

    Args:
        root: LibriSpeech's directory.
        out_dir: The parent of the data directories.
        sets: Parts of the corpus by data directory.
        nj: Number of jobs that read audio headers.

    Returns:
        The data directories, by name.

    Raises:
        ValueError: A transcript or an audio file is not as expected.
    """
    written, known = {}, {}
    for name, parts in sets.items():
        for part in parts:
            if part not in known:
                known[part] = _read_part(Path(root), part, nj)
        data = DataDir.combine([known[part] for part in parts])
        data.write(Path(out_dir, name))
        logging.info("%s: %d utterances", Path(out_dir, name), len(data))
        written[name] = data
    return written


def _read_part(root: Path, part: str, nj: int) -> DataDir:
    _check_transcripts(root / part)  # lhotse leaves out what lacks its audio
    corpus = LhotseCorpus("librispeech", (part,), {"dataset_parts": [part]})
    text, wav_scp, utt2spk = {}, {}, {}
    for segment in corpus.prepare(root, nj=nj)["supervisions"]:
        chapter = segment.id.rpartition("-")[0]  # <reader>-<chapter>
        audio = root.joinpath(part, *chapter.split("-"), f"{segment.id}.flac")
        text[segment.id] = segment.text.lower()
        wav_scp[segment.id] = str(audio)
        utt2spk[segment.id] = chapter
    data = DataDir(root / part, {"text": text, "wav.scp": wav_scp, "utt2spk": utt2spk})
    data.validate()
    return data


def _check_transcripts(path: Path) -> None:
    for table in sorted(path.glob("*/*/*.trans.txt")):
        chapter = table.name.removesuffix(".trans.txt")
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
