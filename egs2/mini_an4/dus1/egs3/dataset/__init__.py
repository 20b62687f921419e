"""mini_an4 for ESPnet3: the recipe's Kaldi data directories, read as a dataset."""

from pathlib import Path

import numpy as np
import soundfile
from espnet3.components.data.base_dataset import BaseDataset
from espnet3.components.data.dataset_builder import DatasetBuilder as Builder
from espnet3.contract import Field

from espnet_dus.data.corpora.an4 import find_corpus, prepare_an4
from espnet_dus.io import read_scp

DATA = "data"
DOWNLOADS = "downloads"


class DatasetBuilder(Builder):
    """Makes data directories of the seven utterances in the espnet package."""

    def is_source_prepared(self, recipe_dir, **_):
        """Return whether the archive was extracted."""
        return Path(recipe_dir, DOWNLOADS, "an4", "etc").is_dir()

    def prepare_source(self, recipe_dir, **_):
        """Extract the archive."""
        find_corpus("espnet", Path(recipe_dir, DOWNLOADS))

    def is_built(self, recipe_dir, **_):
        """Return whether the last data directory exists."""
        return Path(recipe_dir, DATA, "test", "wav.scp").is_file()

    def build(self, recipe_dir, **_):
        """Write the data directories."""
        root = find_corpus("espnet", Path(recipe_dir, DOWNLOADS))
        prepare_an4(root, Path(recipe_dir, DATA), num_dev=1)


class Dataset(BaseDataset):
    """Utterances of a data directory.

    Args:
        split: Its name: train_nodev, train_dev or test.
        recipe_dir: Where the data directories were made.
    """

    fields = (Field("speech", "audio"), Field("text", "text"))

    def __init__(self, split, recipe_dir="."):
        directory = Path(recipe_dir, DATA, split)
        self.texts = list(read_scp(directory / "text").items())
        self.wavs = read_scp(directory / "wav.scp")

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        """Return the waveform (samples,) and the transcript."""
        key, text = self.texts[int(index)]
        speech, _ = soundfile.read(self.wavs[key], dtype="float32")
        return {"speech": np.asarray(speech), "text": text}
