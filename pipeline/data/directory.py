"""A data directory that `pipeline preprocess` wrote."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.core.artifact import read_manifest
from pipeline.core.columns import SCHEMA_FILE, SESSIONS_DIRECTORY
from pipeline.data.fingerprint import folder_fingerprint
from pipeline.data.fitted import Fitted
from pipeline.data.schema import Schema
from pipeline.recipe.preprocess import Preprocess


@dataclass(frozen=True)
class Data:
    """Sessions with their schema and the fitted state of preprocessing; `open` makes one.

    The manifest is checked when the directory is opened; state and schema are read at first use.
    """

    path: Path
    facts: dict[str, Any] = field(repr=False, compare=False)
    """Facts of the manifest: row counts, sessions of each part, notes."""

    @classmethod
    def open(cls, path: "Path | str | Data") -> "Data":
        """Check every file against the manifest. An open directory is returned as it is.

        ArtifactError if the directory is missing, incomplete or damaged.
        """
        if isinstance(path, Data):
            return path
        path = Path(path)
        return cls(path, read_manifest(path, "data"))

    @cached_property
    def fitted(self) -> Fitted:
        """Vocabularies, moments and the recipe that preprocessing fitted."""
        return Fitted.read(self.path)

    @property
    def recipe(self) -> Preprocess:
        """The `preprocess` section that the directory was made by."""
        return self.fitted.recipe

    @cached_property
    def schema(self) -> Schema:
        """Columns of the sessions with tags, domains and cardinalities."""
        return Schema.from_json(self.path / SCHEMA_FILE)

    @cached_property
    def training_fingerprint(self) -> str:
        """Identifies the sessions of the train part by their content."""
        return folder_fingerprint(self.path, f"{SESSIONS_DIRECTORY}/train")

    @property
    def parts(self) -> list[str]:
        """Parts that the directory holds, of train, valid and test."""
        folder = self.path / SESSIONS_DIRECTORY
        return [part for part in ("train", "valid", "test") if (folder / part).is_dir()]
