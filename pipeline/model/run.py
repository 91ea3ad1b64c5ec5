"""A run: the directory that `pipeline train` wrote."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data
from pipeline.data.fitted import Fitted
from pipeline.data.index_mapping import TRAINED_ON, rows_for
from pipeline.model.build import load_model
from pipeline.model.model import Model


@dataclass(frozen=True)
class Run:
    """Trained weights with their fitted state; make one with `open`.

    The manifest is checked when the directory is opened; weights and state are read at first use.
    """

    path: Path
    facts: dict[str, Any] = field(repr=False, compare=False)
    """Facts of the manifest: model and train settings, losses, metrics, seconds."""

    @classmethod
    def open(cls, path: "Path | str | Run") -> "Run":
        """Check every file against the manifest. An open run is returned as it is.

        ArtifactError if the directory is missing, incomplete or damaged.
        """
        if isinstance(path, Run):
            return path
        if not isinstance(path, str | Path):
            raise ConfigError(f"Expected a run or its path, got {type(path).__name__}.")
        path = Path(path)
        return cls(path, read_manifest(path, "run"))

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.resolve().name

    @cached_property
    def fitted(self) -> Fitted:
        """Fitted state of the data that the run was trained on."""
        return Fitted.read(self.path)

    @cached_property
    def model(self) -> Model:
        """The trained model in evaluation mode, on the CPU."""
        return load_model(self.path, self.fitted)

    def index_mapping(self, data: Data) -> dict[str, NDArray[Any]]:
        """Index of the run for each index of the data, (V,) by column.

        Columns with equal vocabularies are left out. ArtifactError unless the data are those of
        the run or a continuation of them.
        """
        return rows_for(self.path, self.fitted, data)

    def was_trained_on(self, data: Data) -> bool:
        """Whether the run was trained on the train part of the data, by its manifest."""
        return self.facts.get(TRAINED_ON) in (None, data.training_fingerprint)
