"""`pipeline export`: a run in, a Triton model repository out."""

import re
import time
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
from pipeline.exporting.repository import keep_version, write_repository
from pipeline.exporting.triton_config import Device
from pipeline.model.run import Run

_LAST_VERSION = 2**31
_KEPT_SECONDS = 120
"""For how long an export that was superseded stays beside newer ones; the newest of them always
does. A server takes some seconds to take up an export, on a busy machine a minute."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")


def export(
    run: Run | Path,
    out: Path,
    *,
    name: str = "recommender",
    default_k: int = 10,
    max_k: int = 100,
    max_batch: int = 256,
    device: Device = "cpu",
    scoring: torchscript.Scoring = "fp32",
) -> dict[str, Any]:
    """Trace the model, prove that the program equals it, write the repository; return its facts.

    `default_k` items are answered where a request names no `k`, at most `max_k` (or the whole
    catalogue, if it is smaller). `device` is where the server runs the model; gpu needs one here
    too. `scoring` int8 makes lists of large catalogues, the same ones, in less time on a CPU.
    A repository at `out` is replaced by its next version.
    ConfigError for numbers or names that cannot be.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name is {name!r}, expected up to 100 letters, digits, - and _.")
    if not 1 <= default_k <= max_k:
        raise ConfigError(f"--k is {default_k}, expected 1 to --max-k, which is {max_k}.")
    if not 1 <= max_batch <= 65_536:
        raise ConfigError(f"--max-batch is {max_batch}, expected 1 to 65536.")
    if device == "gpu" and scoring == "int8":
        raise ConfigError("--scoring int8 is for the CPU. Leave it out, or --device gpu.")
    if device == "gpu" and not torch.cuda.is_available():
        raise ConfigError("--device gpu traces the model on a GPU, and torch sees none here.")
    run = Run.open(run)
    fingerprint = repository_fingerprint(
        run.path,
        name=name,
        default_k=default_k,
        max_k=max_k,
        max_batch=max_batch,
        device=device,
        scoring=scoring,
    )
    facts: dict[str, Any] = {}
    with (
        new_artifact(out, "repository", facts, fingerprint=fingerprint) as directory,
        tqdm(total=3, desc="trace", unit="step", leave=False, disable=None) as steps,
    ):
        # here, where no other export of the same place runs
        before, superseded = _older_versions(out)
        fitted, served = load_served(run, scoring)
        items = len(fitted.item.values)
        max_k = min(max_k, items)
        length = fitted.recipe.max_sequence_length
        served.to("cuda" if device == "gpu" else "cpu")
        program = torchscript.trace(served, length)
        steps.update()
        steps.set_description("compare")
        difference = torchscript.prove_parity(served, program, length)
        steps.update()
        steps.set_description("write")
        write_repository(
            directory,
            name,
            fitted,
            served,
            program,
            default_k=min(default_k, items),
            max_k=max_k,
            max_batch=max_batch,
            version=before + 1,
            device=device,
        )
        for older in superseded:
            keep_version(out, directory, name, int(older))
        facts.update(
            name=name,
            version=before + 1,
            superseded=superseded,
            device=device,
            scoring=scoring,
            catalogue_items=items,
            max_k=max_k,
            largest_score_difference=difference,
            run=run.name,
        )
    return facts


def load_served(
    run: Run, scoring: torchscript.Scoring = "fp32"
) -> tuple[Fitted, torchscript.ServedModel]:
    """What encodes requests for a run, and the model that answers them.

    ArtifactError where the two do not fit each other.
    """
    fitted, model = run.fitted, run.model
    items = model.inputs.item_table.num_embeddings - FIRST_ITEM
    if items != len(fitted.item.values):
        raise ArtifactError(
            f"{run.path} has {items} items in its model and {len(fitted.item.values)} in fitted/. "
            "Train again."
        )
    names = model.inputs.feature_names
    fitted = fitted.only(names)  # a column that is only predicted is not asked for
    for feature in fitted.recipe.operator_features:
        if feature.of != "item":
            raise ConfigError(
                f"{run.path} reads {feature.name!r}, which the operator {feature.operator!r} "
                "makes; the server runs no code but the project's. Say `of: item` where it "
                "describes items, whose values training has then seen, or write it into the log."
            )
    session_names = {f.name for f in fitted.recipe.scalar_features if f.of == "session"}
    return fitted, torchscript.ServedModel(model, names, session_names, scoring)


def _older_versions(out: Path) -> tuple[int, dict[str, float]]:
    """Version of the repository at `out`, 0 where there is none, and those to keep beside the next
    one with the time when they were superseded: a server may be busy with them still."""
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
        return version, {}  # a number that was given out is not given again
    kept = {}
    for older, since in (superseded if isinstance(superseded, dict) else {}).items():
        known = older.isdecimal() and _is_version(int(older)) and isinstance(since, float)
        if known and abs(now - since) < _KEPT_SECONDS:
            kept[older] = since
    return version, {**kept, str(version): now}


def _is_version(value: Any) -> TypeGuard[int]:
    return type(value) is int and 1 <= value < _LAST_VERSION
