"""Fingerprints of the inputs of a stage; a stage with an equal fingerprint is skipped.

The command line compares the fingerprint before it imports a stage, and the stage writes it into
its manifest. A fingerprint is a SHA-256 in 64 hexadecimal digits. All functions raise OSError if a
file or manifest cannot be read.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.artifact import read_json
from pipeline.core.errors import ArtifactError
from pipeline.core.files import hash_file
from pipeline.core.manifest import MANIFEST, WRITTEN_BY
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.train import TrainConfig

ORIGIN = "origin"
"""Fact of a run that starts from another run or uses plugins, see `origin_facts`."""


def data_fingerprint(
    recipe: Preprocess,
    logs: Sequence[Path],
    test_logs: Sequence[Path],
    base: Path | None = None,
    operators: Path | None = None,
    workflow: Path | None = None,
    *,
    valid_logs: Sequence[Path] = (),
) -> str:
    """Fingerprint of a data directory: the recipe and the content of the logs, in their order.

    `base` is the data directory whose vocabularies it extends, `operators` the Python file of
    NVTabular operators, `workflow` that of a whole NVTabular workflow.
    """
    settings: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "inputs": len(logs)}
    if workflow is not None:  # its columns replace some defaults of the recipe
        settings |= {"set": sorted(recipe.model_fields_set), "workflow": workflow.name}
    if valid_logs:
        settings["valid"] = len(valid_logs)
    files = [*logs, *valid_logs, *test_logs, *(Path(table.file) for table in recipe.tables)]
    files += [file for file in (operators, workflow) if file is not None]
    return fingerprint_of(settings, files, [] if base is None else [base])


def run_fingerprint(
    data: Path,
    model: ModelConfig,
    train: TrainConfig,
    *,
    windows: float | None = None,
    start: Path | None = None,
    plugins: Path | None = None,
) -> str:
    """Fingerprint of a run: the data directory, vector files, the model and train sections.

    `windows` is the width of the time windows of incremental training, in seconds; `start` the
    run whose weights training begins from, `plugins` the file of `pipeline.plugins`.
    """
    settings: dict[str, object] = {
        "model": model.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
    }
    if windows is not None:
        settings["windows"] = windows
    files = [Path(vectors.file) for vectors in model.pretrained]
    files += [] if plugins is None else [plugins]
    return fingerprint_of(settings, files, [data] if start is None else [data, start])


def origin_facts(start: Path | None, plugins: Path | None) -> dict[str, str]:
    """Fact that identifies the starting weights and plugins of a run; empty without both."""
    if start is None and plugins is None:
        return {}
    files, artifacts = ([] if path is None else [path] for path in (plugins, start))
    return {ORIGIN: fingerprint_of({}, files, artifacts)}


def fingerprint_of(settings: Any, files: list[Path], artifacts: list[Path]) -> str:
    """Fingerprint of settings, files by name and content, and artifacts by their manifest.

    The name of a file counts because it decides the format.
    """
    parts = {
        "written_by": WRITTEN_BY,
        "settings": settings,
        "files": [[file.name, hash_file(file)] for file in files],
        "artifacts": [hash_file(artifact / MANIFEST) for artifact in artifacts],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def folder_fingerprint(artifact: Path, folder: str) -> str:
    """Fingerprint of the files below a folder of an artifact: their names and content.

    ArtifactError if the manifest cannot be read.
    """
    try:
        files = read_json(artifact / MANIFEST)["files"].items()
        parts = sorted((name, entry["sha256"]) for name, entry in files)
    except (KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{artifact}/{MANIFEST} is damaged.") from None
    text = json.dumps([part for part in parts if part[0].startswith(f"{folder}/")])
    return hashlib.sha256(text.encode()).hexdigest()
