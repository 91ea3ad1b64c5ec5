"""`pipeline export`: a run in, a Triton model repository out."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from tqdm import tqdm

from pipeline.core.artifact import new_artifact, read_manifest
from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.fingerprint import repository_fingerprint
from pipeline.data.fitted import Fitted
from pipeline.exporting import torchscript
from pipeline.exporting.options import Device, Scoring, check_options
from pipeline.exporting.repository import ServingSettings, keep_version, write_repository
from pipeline.model.run import Run

_LAST_VERSION = 2**31
_KEPT_SECONDS = 120
"""How long a superseded version is kept; the newest of them is always kept. A server takes some
seconds to load an export, on a busy machine a minute."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """Facts of an exported repository, as its manifest has them."""

    name: str
    """Name of the model for clients."""
    version: int
    superseded: dict[str, float]
    """Older versions that are kept, each with the Unix time when it was superseded."""
    device: Device
    scoring: Scoring
    catalogue_items: int
    max_k: int
    largest_score_difference: float
    """Between the program and the model."""
    run: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)


def export(
    run: Run | Path,
    out: Path,
    *,
    name: str = "recommender",
    default_k: int = 10,
    max_k: int = 100,
    max_batch: int = 256,
    device: Device = "cpu",
    scoring: Scoring = "fp32",
) -> ExportResult:
    """Trace the model, prove that the program equals it, and write the repository.

    A list has `default_k` items if a request has no `k`, and at most `max_k` (or the whole
    catalogue, if that is smaller). `device` is where the server runs the model; gpu needs one here
    too. `scoring` int8 makes the same lists of a large catalogue in less time on a CPU. A
    repository at `out` is replaced by its next version.
    ConfigError for settings that do not fit each other or this machine.
    """
    options: dict[str, Any] = {
        "name": name,
        "default_k": default_k,
        "max_k": max_k,
        "max_batch": max_batch,
        "device": device,
        "scoring": scoring,
    }
    check_options(**options)
    if device == "gpu" and not torch.cuda.is_available():
        raise ConfigError("--device gpu traces the model on a GPU, and torch sees none here.")
    run = Run.open(run)
    fingerprint = repository_fingerprint(run.path, **options)
    facts: dict[str, Any] = {}
    with new_artifact(out, "repository", facts, fingerprint=fingerprint) as directory:
        # inside the block, where no other export to the same place runs
        last_version, superseded = _older_versions(out)
        settings = ServingSettings(
            name=name,
            version=last_version + 1,
            default_k=default_k,
            max_k=max_k,
            max_batch=max_batch,
            device=device,
        )
        result = _write_version(directory, run, settings, scoring, superseded)
        for version in superseded:
            keep_version(out, directory, name, int(version))
        facts.update(result.to_dict())
    return result


def _write_version(
    directory: Path,
    run: Run,
    settings: ServingSettings,
    scoring: Scoring,
    superseded: dict[str, float],
) -> ExportResult:
    fitted, model = load_served(run, scoring)
    num_items = len(fitted.item.values)
    settings = replace(
        settings,
        default_k=min(settings.default_k, num_items),
        max_k=min(settings.max_k, num_items),
    )
    length = fitted.recipe.max_sequence_length
    with tqdm(total=3, desc="trace", unit="step", leave=False, disable=None) as steps:
        model.to("cuda" if settings.device == "gpu" else "cpu")
        program = torchscript.trace(model, length)
        steps.update()
        steps.set_description("compare")
        difference = torchscript.prove_parity(model, program, length)
        steps.update()
        steps.set_description("write")
        write_repository(directory, fitted, model, program, settings)
    return ExportResult(
        name=settings.name,
        version=settings.version,
        superseded=superseded,
        device=settings.device,
        scoring=scoring,
        catalogue_items=num_items,
        max_k=settings.max_k,
        largest_score_difference=difference,
        run=run.name,
    )


def load_served(run: Run, scoring: Scoring = "fp32") -> tuple[Fitted, torchscript.InferenceModel]:
    """Return the fitted state that encodes requests and the model that answers them.

    ArtifactError if the two do not fit each other; ConfigError for a feature that a server cannot
    compute.
    """
    fitted, model = run.fitted, run.model
    items = model.inputs.item_table.num_embeddings - FIRST_ITEM
    if items != len(fitted.item.values):
        raise ArtifactError(
            f"{run.path} has {items} items in its model and {len(fitted.item.values)} in fitted/. "
            "Train again."
        )
    names = model.inputs.feature_names
    fitted = fitted.only(names)  # requests hold no column that is only a target
    for feature in fitted.recipe.operator_features:
        if feature.of != "item":
            raise ConfigError(
                f"{run.path} reads {feature.name!r}, which the operator {feature.operator!r} "
                "makes; the server runs no code but the project's. Say `of: item` where it "
                "describes items, whose values training has then seen, or write it into the log."
            )
    session_names = {f.name for f in fitted.recipe.scalar_features if f.of == "session"}
    return fitted, torchscript.InferenceModel(model, names, session_names, scoring)


def _older_versions(out: Path) -> tuple[int, dict[str, float]]:
    """Return the version of the repository at `out`, 0 if there is none, and versions to keep.

    A server may still use those, by version the Unix time when each was superseded.
    """
    now = time.time()
    try:
        facts = read_manifest(out, "repository", check_files=False)
    except ArtifactError:
        return 0, {}
    version, superseded = facts.get("version"), facts.get("superseded")
    if not _is_version(version):
        return 0, {}
    try:
        read_manifest(out, "repository")
    except ArtifactError:
        return version, {}  # a version number is never used twice
    kept = {}
    for older, since in (superseded if isinstance(superseded, dict) else {}).items():
        is_valid = older.isdecimal() and _is_version(int(older)) and isinstance(since, float)
        if is_valid and abs(now - since) < _KEPT_SECONDS:
            kept[older] = since
    return version, {**kept, str(version): now}


def _is_version(value: Any) -> TypeGuard[int]:
    return type(value) is int and 1 <= value < _LAST_VERSION
