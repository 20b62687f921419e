"""Preparation of corpora by lhotse's recipes."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

Manifests = Dict[str, Any]


@dataclass(frozen=True)
class LhotseCorpus:
    """How lhotse prepares a corpus.

    Attributes:
        recipe: The function `prepare_<recipe>` of `lhotse.recipes`.
        part: Keys of the wanted part in what it returns.
        options: Options of the function.
        librivox: Whether speakers have the numbers of LibriVox's readers.
    """

    recipe: str
    part: Tuple[str, ...]
    options: Dict[str, Any] = field(default_factory=dict)
    librivox: bool = False

    def prepare(
        self, corpus_dir: Path, manifest_dir: Optional[Path] = None, nj: int = 1
    ) -> Manifests:
        """Prepare the corpus.

        Args:
            corpus_dir: The corpus, as its archives make it.
            manifest_dir: For lhotse's manifests, which a second run reads; None: they
                are not kept.
            nj: Number of jobs.

        Returns:
            `recordings` and `supervisions` of the part.

        Raises:
            ValueError: The part is missing.
        """
        recipes = importlib.import_module("lhotse.recipes")
        function = getattr(recipes, f"prepare_{self.recipe}")
        prepared = function(
            corpus_dir, output_dir=manifest_dir, num_jobs=nj, **self.options
        )
        for key in self.part:
            if key not in prepared:
                raise ValueError(
                    f"{corpus_dir}: no part {'/'.join(self.part)} was found there"
                )
            prepared = prepared[key]
        return prepared
