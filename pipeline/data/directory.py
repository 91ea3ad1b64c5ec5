"""Data directory: the output of `pipeline preprocess`."""

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pipeline.core.artifact import read_manifest
from pipeline.core.columns import SCHEMA_FILE, SESSIONS_DIRECTORY
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.files import hash_file
from pipeline.core.manifest import MANIFEST
from pipeline.data.fingerprint import folder_fingerprint
from pipeline.data.fitted import Fitted
from pipeline.data.schema import Schema
from pipeline.data.state_checks import check_sessions
from pipeline.recipe.preprocess import Preprocess


class ChangedDataError(ArtifactError):
    """The data directory changed while it was read."""


@dataclass(frozen=True)
class Data:
    """Open data directory: sessions, their schema and the fitted state of preprocessing.

    `open` checks the manifest; state and schema are read at first use.
    """

    path: Path
    facts: dict[str, Any] = field(repr=False, compare=False)
    """Facts of the manifest: row counts, sessions of each part, notes."""
    _identities: dict[str, tuple[int, int, int]] | None = field(
        default=None, repr=False, compare=False
    )
    _manifest_hash: str = field(default="", repr=False, compare=False)

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
        identities = _identities(path)
        facts = read_manifest(path, "data")
        return cls(path, facts, identities, hash_file(path / MANIFEST))

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

        A part that the directory lacks is skipped.
        """
        for part in parts:
            if part in self.parts:
                check_sessions(self.path, part, self.fitted)

    def check_unchanged(self) -> None:
        """ArtifactError if files were removed since `open`, ChangedDataError if their bytes
        changed.

        Only files with a new inode or time are read again.
        """
        if self._identities in (None, _identities(self.path)):
            return
        missing = [name for name in self._identities or () if not (self.path / name).exists()]
        if missing:
            raise ArtifactError(
                f"{self.path} was removed while it was read: {missing[0]} is missing. Put it back, "
                "and run the command again."
            )
        try:
            read_manifest(self.path, "data")
        except ArtifactError as error:
            raise ChangedDataError(f"Changed while it was read: {error}") from None
        if hash_file(self.path / MANIFEST) != self._manifest_hash:
            raise ChangedDataError(
                f"{self.path} was replaced by other data while it was read. Run the command again."
            )

    @property
    def parts(self) -> list[str]:
        """Parts of the directory: some of train, valid and test."""
        folder = self.path / SESSIONS_DIRECTORY
        return [part for part in ("train", "valid", "test") if (folder / part).is_dir()]


def _identities(path: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of the last change in nanoseconds of the files below a directory."""
    identities = {}
    for file in sorted(path.rglob("*")):
        with suppress(FileNotFoundError):
            status = file.stat()
            if not file.is_dir():
                name = file.relative_to(path).as_posix()
                identities[name] = status.st_ino, status.st_size, status.st_mtime_ns
    return identities
