"""Older versions of a model that a repository keeps, and the rollback to the previous one.

A server may still use the version that an export superseded, and `rollback` serves it again. Every
version has the configuration of its ensemble in its own directory, and its facts in the manifest.
"""

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.artifact import new_artifact, read_manifest
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.manifest import MANIFEST, SIGNATURE
from pipeline.core.signature import check_resignable
from pipeline.exporting.repository import ENSEMBLE_FILE
from pipeline.exporting.served_models import OTHER_MODELS, read_models
from pipeline.exporting.triton_config import CONFIG_FILE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MIN_KEPT_SECONDS = 120
"""Seconds for which a superseded version is kept in any case: a server takes some seconds to load
an export, and a minute on a busy machine."""


@dataclass(frozen=True, kw_only=True)
class OlderVersions:
    """Versions of a model besides the served one; keys are versions as text, for JSON."""

    superseded: dict[str, float]
    """Unix time when each was superseded."""
    earlier: dict[str, dict[str, Any]]
    """Facts of each, without those of versions. Exports of earlier releases have none."""
    withdrawn: list[str]
    """Versions that a rollback replaced. No rollback returns to them, and the next export need not
    keep them."""

    @classmethod
    def none(cls) -> "OlderVersions":
        """Return the value of a new model, without older versions."""
        return cls(superseded={}, earlier={}, withdrawn=[])

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "OlderVersions":
        """Read the older versions in the facts of a model."""
        names = cls.__dataclass_fields__
        return cls(**{**asdict(cls.none()), **{n: facts[n] for n in names if n in facts}})

    def after(self, facts: dict[str, Any], keep: int) -> "OlderVersions":
        """Return the versions to keep once the version with `facts` is superseded.

        With the new one they are `keep`, besides those of the last `MIN_KEPT_SECONDS`.
        """
        now = time.time()
        times = {**self.superseded, str(facts["version"]): now}
        ready = [version for version in times if version not in self.withdrawn]
        # by number, as the clock may have been set back between exports
        newest = sorted(ready, key=int)[1 - keep :]
        kept = [
            version
            for version, since in times.items()
            if version in newest or abs(now - since) < MIN_KEPT_SECONDS
        ]
        return self._with(facts, {version: times[version] for version in kept}, self.withdrawn)

    def _with(
        self, facts: dict[str, Any], times: dict[str, float], withdrawn: list[str]
    ) -> "OlderVersions":
        """Return the versions of `times`, of which the version with `facts` is new."""
        earlier = {**self.earlier, str(facts["version"]): facts_of_version(facts)}
        return OlderVersions(
            superseded=times,
            earlier={version: earlier[version] for version in times if version in earlier},
            withdrawn=[version for version in withdrawn if version in times],
        )

    def without(self, version: str, facts: dict[str, Any]) -> "OlderVersions":
        """Return the older versions once `version` replaces the served one with `facts`."""
        withdrawn = str(facts["version"])
        times = {**self.superseded, withdrawn: time.time()}
        del times[version]
        return self._with(facts, times, [*self.withdrawn, withdrawn])

    def before(self, served: int) -> str | None:
        """Return the version for a rollback from version `served`, None without one."""
        ready = [int(version) for version in self.superseded if version not in self.withdrawn]
        return str(max(ready)) if ready and max(ready) < served else None


def facts_of_version(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts of a model without those of its older versions and of other models."""
    others = {*OlderVersions.__dataclass_fields__, OTHER_MODELS}
    return {name: value for name, value in facts.items() if name not in others}


@dataclass(frozen=True, kw_only=True)
class RollbackResult:
    """Result of a rollback."""

    name: str
    """Name of the model for clients."""
    version: int
    """Version that is served again."""
    withdrawn: int
    """Version that was served before."""
    run: str
    """Name of the run of the version that is served again."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def rollback(
    repository: Path, name: str | None = None, *, key: "Ed25519PrivateKey | None" = None
) -> RollbackResult:
    """Serve the previous version again; the repository is replaced atomically.

    A server with --reload continues to answer. `name` is that of the model, by default the only
    one. `key` signs the repository again. ConfigError for an unknown model or one without a
    previous version; ArtifactError for a damaged repository.
    """
    read_manifest(repository, "repository", check_files=False)  # new_artifact would create it
    facts: dict[str, Any] = {}
    with new_artifact(repository, "repository", facts, key=key) as directory:
        check_resignable(repository, key)
        top = read_manifest(repository, "repository")
        name = _model_name(repository, name)
        served = read_models(repository).models[name]
        older = OlderVersions.of(served)
        version = older.before(served["version"])
        if version is None:
            raise ConfigError(
                f"{repository} has no version of {name} before {served['version']}, which is "
                "served. Export an earlier run again."
            )
        shutil.copytree(
            repository,
            directory,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__", MANIFEST, SIGNATURE),
        )
        configuration = directory / name / version / ENSEMBLE_FILE
        if version not in older.earlier or not configuration.is_file():
            raise ArtifactError(
                f"{repository}: an earlier release exported version {version} of {name} without "
                "the files of a rollback. Export its run again."
            )
        shutil.copyfile(configuration, directory / name / CONFIG_FILE)
        changed = {**older.earlier[version], **asdict(older.without(version, served))}
        if top["name"] == name:
            facts.update(changed, **{OTHER_MODELS: top.get(OTHER_MODELS, {})})
        else:
            facts.update(top, **{OTHER_MODELS: {**top[OTHER_MODELS], name: changed}})
    return RollbackResult(
        name=name, version=int(version), withdrawn=served["version"], run=changed["run"]
    )


def _model_name(repository: Path, name: str | None) -> str:
    """Return the name, or that of the only model. ConfigError for an unknown or missing name."""
    names = sorted(read_models(repository).models)
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        raise ConfigError(f"{repository} has the models {', '.join(names)}. Choose one by --name.")
    if name not in names:
        raise ConfigError(f"{repository} has no model {name}, it has {', '.join(names)}.")
    return name
