"""Models of a repository, by its manifest, which has the facts of the last export at its top."""

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ArtifactError

OTHER_MODELS = "other_models"
"""Fact of a repository: the facts of each model but the one that was exported last, by name."""


class ServedModels(NamedTuple):
    """Facts of the models of a repository."""

    models: dict[str, dict[str, Any]]
    """By name."""
    last_version: int
    """Versions count the exports into a repository, whatever the model; 0 before the first."""

    def others(self, name: str) -> dict[str, dict[str, Any]]:
        """Return the models that have another name."""
        return {other: facts for other, facts in self.models.items() if other != name}


def read_models(repository: Path) -> ServedModels:
    """Return the models of a repository, none where there is no repository."""
    try:
        facts = read_manifest(repository, "repository", check_files=False)
    except ArtifactError:
        return ServedModels({}, 0)
    others = facts.pop(OTHER_MODELS, {})
    return ServedModels({**others, facts["name"]: facts}, facts["version"])
