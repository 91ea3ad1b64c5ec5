"""Models of a repository in its manifest, whose top level has the facts of the last export."""

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.artifact import read_manifest, whole_facts
from pipeline.core.errors import ArtifactError

OTHER_MODELS = "other_models"
"""Key of the facts of all models but the one that was exported last, by name."""


class ServedModels(NamedTuple):
    """Facts of the models of a repository."""

    models: dict[str, dict[str, Any]]
    """Facts by model name."""
    last_version: int
    """Number of exports into the repository, of any model; 0 before the first."""

    def others(self, name: str) -> dict[str, dict[str, Any]]:
        """Return the models that have another name."""
        return {other: facts for other, facts in self.models.items() if other != name}


def current_model(repository: Path, name: str, fingerprint: str) -> dict[str, Any] | None:
    """Return the facts of a model of a whole repository if it has this fingerprint, else None."""
    facts = read_models(repository).models.get(name, {})
    is_current = facts.get("fingerprint") == fingerprint
    return facts if is_current and whole_facts(repository, "repository") is not None else None


def read_models(repository: Path) -> ServedModels:
    """Return the models of a repository, none where there is no repository."""
    try:
        facts = read_manifest(repository, "repository", check_files=False)
    except ArtifactError:
        return ServedModels({}, 0)
    others = facts.pop(OTHER_MODELS, {})
    models = {**others, facts["name"]: facts}
    # after a rollback, older versions have higher numbers
    versions = [int(v) for each in models.values() for v in (each["version"], *each["superseded"])]
    return ServedModels(models, max(versions))
