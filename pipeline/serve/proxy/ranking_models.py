"""Models of a repository that recommend lists of items."""

from contextlib import suppress
from pathlib import Path

from pipeline.core.artifact import read_manifest
from pipeline.core.columns import version_alias
from pipeline.core.errors import ArtifactError
from pipeline.core.manifest import MANIFEST
from pipeline.serve.client.answers import OUTPUTS


class RankingModels:
    """Names of these models, kept up to date with the repository; empty without one.

    Each kept version of a model also has its own name.
    """

    def __init__(self, repository: Path | None) -> None:
        self.repository = repository
        self._names: frozenset[str] = frozenset()
        self._manifest: tuple[int, int] | None = None
        """Inode and time of the manifest that was read."""

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def names(self) -> frozenset[str]:
        """Return the current names."""
        if self.repository is not None:
            try:
                stat = (self.repository / MANIFEST).stat()
            except OSError:  # being replaced, or removed
                return self._names
            if self._manifest != (stat.st_ino, stat.st_mtime_ns):
                with suppress(ArtifactError, OSError):  # as above; the names stay
                    self._names = _ranking_models(self.repository)
                    self._manifest = (stat.st_ino, stat.st_mtime_ns)
        return self._names


def model_configs(repository: Path) -> dict[str, str]:
    """Return the configuration of each model of clients by name. ArtifactError, OSError."""
    facts = read_manifest(repository, "repository", check_files=False)
    names = (facts["name"], *facts.get("other_models", ()))
    return {name: (repository / name / "config.pbtxt").read_text("utf-8") for name in names}


def _ranking_models(repository: Path) -> frozenset[str]:
    configs = model_configs(repository)
    for name in list(configs):
        for file in repository.glob(f"{version_alias(name, '')}*/config.pbtxt"):
            configs[file.parent.name] = file.read_text("utf-8")
    return frozenset(
        name
        for name, config in configs.items()
        if all(f'name: "{output}"' in config for output in OUTPUTS)
    )
