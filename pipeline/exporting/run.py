"""`pipeline export`: writes a run as a Triton model repository."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from pipeline.core.artifact import new_artifact, read_manifest
from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.signature import check_resignable
from pipeline.data.fingerprint import fingerprint_of
from pipeline.data.fitted import Fitted
from pipeline.exporting import torchscript
from pipeline.exporting.options import Device, ExportOptions, Scoring
from pipeline.exporting.repository import keep_model, keep_version, write_repository
from pipeline.exporting.served_models import ServedModels, read_models
from pipeline.exporting.versions import OlderVersions
from pipeline.model.run import Run
from pipeline.model.similar_items import similar_items_model

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MIN_KEEP = 2
"""Smallest number of versions of a model that a repository keeps."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """Facts of an exported repository in its manifest."""

    name: str
    """Name of the model for clients."""
    version: int
    superseded: dict[str, float]
    """Unix time at which each kept older version was superseded."""
    earlier: dict[str, dict[str, Any]]
    """Facts of these versions."""
    withdrawn: list[str]
    """Kept older versions that a rollback replaced."""
    device: Device
    scoring: Scoring
    catalogue_items: int
    max_k: int
    ranks_items: bool
    """Whether the model recommends items; otherwise it predicts only `targets`."""
    targets: list[str]
    """Names of the predictions besides the next item."""
    item_targets: list[str]
    """Names of the predictions for each item of a list."""
    rank_by: str | None
    """Expression by which lists are ranked, None for the scores of the next item."""
    largest_score_difference: float
    """Largest difference of scores between the program and the model."""
    run: str
    fingerprint: str | None
    """Fingerprint of the run and the options (`pipeline.data.fingerprint`); None for a model in
    memory."""
    other_models: dict[str, dict[str, Any]]
    """Facts of the other models of the repository, by name."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def export(
    run: Run | Path,
    out: Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008  immutable
    *,
    replace_others: bool = False,
    keep: int = MIN_KEEP,
    key: "Ed25519PrivateKey | None" = None,
) -> ExportResult:
    """Trace the model, check that the program equals it, and write the repository.

    In a repository at `out`, a model of the same name gets its next version; models of other names
    stay unless `replace_others`. `keep` is the number of versions of this model to keep, the new
    one included; a version that was superseded less than two minutes ago is kept in any case. `key`
    signs the repository; an existing one must be signed by it.
    ConfigError for a missing GPU, ArtifactError for a damaged repository whose other models cannot
    be kept.
    """
    if options.device == "gpu" and not torch.cuda.is_available():
        raise ConfigError("--device gpu traces the model on a GPU, and torch finds none.")
    run = Run.open(run)
    check_resignable(out, key)

    fingerprint = _fingerprint(run, options)
    facts: dict[str, Any] = {}
    with new_artifact(out, "repository", facts, fingerprint=fingerprint, key=key) as directory:
        # again inside the block, which excludes other exports to the same directory
        check_resignable(out, key)
        models = read_models(out)
        others = {} if replace_others else models.others(options.name)
        older = _older_versions(out, models, options.name, others, keep)
        result = _write_version(directory, run, options, models.last_version + 1, older, others)
        for version in older.superseded:
            keep_version(out, directory, options.name, int(version))
        for name, other in others.items():
            keep_model(out, directory, name, (other["version"], *other["superseded"]))
        facts.update(result.to_dict())
    return result


def _write_version(
    directory: Path,
    run: Run,
    options: ExportOptions,
    version: int,
    older: OlderVersions,
    others: dict[str, dict[str, Any]],
) -> ExportResult:
    fingerprint = _fingerprint(run, options)
    fitted, model = load_served(
        run,
        options.scoring,
        workflow_backend=options.workflow_backend,
        similar=options.max_k if options.similar else None,
    )
    num_items = len(fitted.item.values)
    options = replace(
        options, default_k=min(options.default_k, num_items), max_k=min(options.max_k, num_items)
    )
    length = fitted.recipe.max_sequence_length
    with tqdm(total=3, desc="trace", unit="step", leave=False, disable=None) as steps:
        model.to("cuda" if options.device == "gpu" else "cpu")
        program = torchscript.trace(model, length)
        steps.update()
        steps.set_description("compare")
        difference = torchscript.prove_parity(model, program, length)
        steps.update()
        steps.set_description("write")
        write_repository(directory, fitted, model, program, options, version)
    return ExportResult(
        name=options.name,
        version=version,
        superseded=older.superseded,
        earlier=older.earlier,
        withdrawn=older.withdrawn,
        device=options.device,
        scoring=options.scoring,
        catalogue_items=num_items,
        max_k=options.max_k,
        ranks_items=model.model.ranks_items,
        targets=model.targets,
        item_targets=model.item_targets,
        rank_by=None if model.model.rank_by is None else model.model.rank_by.text,
        largest_score_difference=difference,
        run=run.name,
        fingerprint=fingerprint,
        other_models=others,
    )


def _fingerprint(run: Run, options: ExportOptions) -> str | None:
    """Fingerprint of a run and the options; None for a model in memory, which has no files."""
    return None if run.in_memory else fingerprint_of(asdict(options), [], [run.path])


def load_served(
    run: Run,
    scoring: Scoring = "fp32",
    *,
    workflow_backend: bool = False,
    similar: int | None = None,
) -> tuple[Fitted, torchscript.InferenceModel]:
    """Return the fitted state that encodes requests and the model that answers them.

    With `workflow_backend` the user's NVTabular workflow encodes them. With `similar` the model
    returns this number of similar items of an item instead of next items. ArtifactError if fitted
    state and model do not match; ConfigError for a feature that a server cannot compute.
    """
    fitted, model = run.fitted, run.model
    items = model.inputs.item_table.num_embeddings - FIRST_ITEM
    if items != len(fitted.item.values):
        raise ArtifactError(
            f"{run.path} has {items} items in its model and {len(fitted.item.values)} in fitted/. "
            "Train again."
        )
    if similar is not None:
        if not model.ranks_items:
            raise ConfigError(
                f"{run.path} does not predict the next item, so no items are similar."
            )
        model = similar_items_model(model, similar)
    names = model.inputs.feature_names
    fitted = fitted.only(names)  # requests hold no column that is only a target
    for feature in fitted.recipe.operator_features:
        if feature.of != "item":
            raise ConfigError(
                f"{run.path} reads {feature.name!r}, which the operator {feature.operator!r} "
                "computes; the server runs only code of the project. Set `of: item` if it "
                "describes items, so that the server stores its values, or write it into the log."
            )
    check_workflow(run, fitted, workflow_backend)
    session_names = {f.name for f in fitted.recipe.scalar_features if f.of == "session"}
    return fitted, torchscript.InferenceModel(model, names, session_names, scoring)


def check_workflow(run: Run, fitted: Fitted, workflow_backend: bool) -> None:
    """ConfigError for an operator of a user's workflow that a server cannot run."""
    if workflow_backend:
        if fitted.workflow is None:
            raise ConfigError(
                f"{run.path} was not trained on data of `preprocess --workflow`. Leave out "
                "--workflow-backend."
            )
        if fitted.workflow.obstacle is not None:
            raise ConfigError(
                f"{run.path}: {fitted.workflow.obstacle} cannot be written as JSON, and the server "
                "runs no code from files. Replace the operator in the workflow."
            )
        return
    for name, operators in fitted.operator_steps.items():
        if operators.obstacle is None:
            continue
        advice = "Replace the operator, or train without this column."
        if fitted.workflow is not None and fitted.workflow.obstacle is None:
            advice = "For an image that has NVTabular, export with --workflow-backend."
        raise ConfigError(
            f"{run.path} reads {name!r}, which {operators.obstacle} computes: that operator cannot "
            f"be written as tables and formulas. {advice}"
        )


def _older_versions(
    out: Path, models: ServedModels, name: str, others: dict[str, dict[str, Any]], keep: int
) -> OlderVersions:
    """Return the versions of a model to keep.

    ArtifactError if `others` must be kept in a damaged repository.
    """
    try:
        read_manifest(out, "repository")
    except ArtifactError as error:
        if others:
            raise ArtifactError(
                f"{error} It holds other models as well ({', '.join(sorted(others))}): "
                "--replace removes them."
            ) from None
        return OlderVersions.none()
    facts = models.models.get(name)
    return OlderVersions.none() if facts is None else OlderVersions.of(facts).after(facts, keep)
