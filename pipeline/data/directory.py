"""Data directory: the output of `pipeline preprocess`."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pipeline.core.artifact import read_manifest
from pipeline.core.columns import SCHEMA_FILE, SESSIONS_DIRECTORY
from pipeline.core.errors import ConfigError
from pipeline.data.fingerprint import folder_fingerprint
from pipeline.data.fitted import Fitted
from pipeline.data.schema import Schema
from pipeline.data.state_checks import check_sessions
from pipeline.recipe.preprocess import Preprocess


@dataclass(frozen=True)
class Data:
    """Open data directory: sessions, their schema and the fitted state of preprocessing.

    `open` checks the manifest; state and schema are read at first use.
    """

    path: Path
    facts: dict[str, Any] = field(repr=False, compare=False)
    """Facts of the manifest: row counts, sessions of each part, notes."""

    @classmethod
    def open(cls, path: "Path | str | Data") -> Self:
        """Open a directory and check its files. An open directory is returned as it is.

        ArtifactError if the directory is missing, incomplete or damaged.
        """
        if isinstance(path, Data):
            return path  # type: ignore[return-value]
        if not isinstance(path, str | Path):
            raise ConfigError(f"Expected a data directory or its path, got {type(path).__name__}.")
        path = Path(path)
        return cls(path, read_manifest(path, "data"))

    @cached_property
    def fitted(self) -> Fitted:
        """Recipe, vocabularies and statistics."""
        return Fitted.read(self.path)

    @property
    def recipe(self) -> Preprocess:
        """`preprocess` section of the recipe."""
        return self.fitted.recipe

    @cached_property
    def schema(self) -> Schema:
        """Columns of the sessions with tags, domains and cardinalities."""
        return Schema.from_json(self.path / SCHEMA_FILE)

    @cached_property
    def training_fingerprint(self) -> str:
        """Fingerprint of the training sessions."""
        return folder_fingerprint(self.path, f"{SESSIONS_DIRECTORY}/train")

    def check_sessions(self, *parts: str) -> None:
        """ArtifactError for sessions of a part that do not fit the vocabularies.

        A part that the directory does not have is left out.
        """
        for part in parts:
            if part in self.parts:
                check_sessions(self.path, part, self.fitted)

    @property
    def parts(self) -> list[str]:
        """Parts of the directory: some of train, valid and test."""
        folder = self.path / SESSIONS_DIRECTORY
        return [part for part in ("train", "valid", "test") if (folder / part).is_dir()]
