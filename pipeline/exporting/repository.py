"""A Triton model repository: a Python model that encodes requests, the model, and an ensemble.

The ensemble has one step. That step, `requests`, encodes all requests of an execution together,
calls the model once for all of them and looks the ids up. As three steps of a Triton ensemble each
request passed through three models by itself (`docs/serving.md`).

Each export to the same place is a new version. Its steps are separate models whose names contain
the version; those of the version before stay beside them, unchanged. A server that polls for
changes loads the new steps and then the ensemble, so that no request combines the tables of one
export with the model of another.
"""

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.files import find_resource
from pipeline.data.fitted import Fitted
from pipeline.exporting import request_tables as tables
from pipeline.exporting import torchscript
from pipeline.exporting import triton_config as config
from pipeline.exporting.triton_config import TensorConfig

TRITON_TYPES = {"int64": "TYPE_INT64", "float64": "TYPE_FP64", "string": "TYPE_STRING"}
STEPS = ("requests", "model")
CLIENT_PARAMETER = "pipeline"
"""Parameter of the ensemble from which clients read how columns of a log become tensors."""
_PACKED = TensorConfig("packed__0", "TYPE_INT32", (-1,))
_LISTS = TensorConfig("lists__0", "TYPE_INT32", (-1,))
"""Input and output of the model, with names as Triton's PyTorch backend needs them."""


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """How a repository serves its model."""

    name: str
    """Name of the model for clients."""
    version: int
    default_k: int
    """Items of a list if a request has no `k`."""
    max_k: int
    max_batch: int
    """Most sessions of a batch."""
    device: config.Device = "cpu"


def write_repository(
    directory: Path,
    fitted: Fitted,
    model: torchscript.InferenceModel,
    program: torch.jit.ScriptModule,
    settings: ServingSettings,
) -> None:
    """Write three models below `directory`; clients ask the one called `settings.name`."""
    requests_name, model_name = step_names(settings.name, settings.version)
    spec = request_spec(
        fitted,
        model,
        default_k=settings.default_k,
        max_k=settings.max_k,
        max_batch=settings.max_batch,
    )
    spec["model"] = model_name
    inputs, outputs = _request_tensors(spec), _answer_tensors(fitted, spec)

    version_directory = _new_model(
        directory / requests_name,
        config.python_model(requests_name, inputs, outputs, settings.max_batch),
    )
    _copy_adapter(version_directory)
    tables.write_encoder(version_directory, fitted, spec)

    model_config = config.torchscript_model(
        model_name, [_PACKED], [_LISTS], settings.max_batch, settings.device
    )
    samples = _samples(model, fitted.recipe.max_sequence_length, settings)
    config.add_warm_up(model_config, samples)
    version_directory = _new_model(directory / model_name, model_config)
    config.write_samples(directory / model_name, samples)
    torchscript.save(program, version_directory / "model.pt")

    step = config.EnsembleStep(
        requests_name, {t.name: t.name for t in inputs}, {t.name: t.name for t in outputs}
    )
    ensemble = config.ensemble(
        settings.name,
        inputs,
        outputs,
        [step],
        settings.max_batch,
        {CLIENT_PARAMETER: json.dumps(client_facts(fitted, spec))},
        version=settings.version,
    )
    version_directory = _new_model(directory / settings.name, ensemble, settings.version)
    (version_directory / ".keep").touch()  # Triton needs a version directory, git and tar a file


def request_spec(
    fitted: Fitted,
    model: torchscript.InferenceModel,
    *,
    default_k: int,
    max_k: int,
    max_batch: int,
) -> dict[str, Any]:
    """Return `encoder.json` without the name of the model: how requests become its input."""
    return tables.encoder_spec(fitted, default_k, max_k) | {
        "max_batch": max_batch,
        "packing": model.packing,
        "width": model.width,
    }


def step_names(name: str, version: int) -> tuple[str, str]:
    """Return the names of the two models behind one version of the ensemble `name`."""
    requests, model = (f"{name}_{step}_v{version}" for step in STEPS)
    return requests, model


def keep_version(previous: Path, directory: Path, name: str, version: int) -> None:
    """Copy the models of one `version` of an older repository beside those of the new one.

    Copies, not links: a link changes the inode, for which a polling server would load the ensemble
    again while half of the files are old.
    """
    steps = (path.name for path in previous.glob(f"{name}_*_v{version}"))
    for part in (*sorted(steps), f"{name}/{version}"):
        if (previous / part).is_dir():
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(previous / part, directory / part, ignore=skipped)


def _request_tensors(spec: dict[str, Any]) -> list[TensorConfig]:
    """Return the inputs of a request. All are optional for Triton, so that the request runtime
    names a missing one: Triton's own error does not where requests share a batch."""
    item = TRITON_TYPES[next(c["type"] for c in spec["columns"] if c["name"] == ITEM)]
    kinds = {column["name"]: TRITON_TYPES[column["type"]] for column in spec["columns"]}
    if spec["timestamp"] is not None:
        kinds[TIMESTAMP] = TRITON_TYPES[spec["timestamp"]["type"]]
    kinds |= {SESSION: TRITON_TYPES[spec["session_type"]], "exclude": item, "candidates": item}
    tensors = [TensorConfig(name, kind, (-1,), optional=True) for name, kind in kinds.items()]
    for name, kind in (("length", "TYPE_INT32"), ("k", "TYPE_INT32"), ("filter_seen", "TYPE_BOOL")):
        tensors.append(TensorConfig(name, kind, (1,), optional=True))
    return tensors


def _answer_tensors(fitted: Fitted, spec: dict[str, Any]) -> list[TensorConfig]:
    return [
        # not item_id: tensors of an ensemble share one name space with its inputs
        TensorConfig("item_ids", TRITON_TYPES[fitted.item.type], (-1,)),
        TensorConfig("scores", "TYPE_FP32", (-1,)),
        TensorConfig("embedding", "TYPE_FP32", (-1,)),
        TensorConfig("session_ids", TRITON_TYPES[spec["session_type"]], (-1,)),
    ]


def _samples(
    model: torchscript.InferenceModel, length: int, settings: ServingSettings
) -> dict[str, dict[str, np.ndarray]]:
    """Return the requests that warm the model up: one session, and a few."""
    samples = {}
    for label, sessions in (("one", 1), ("few", min(8, settings.max_batch))):
        # without excluded items and candidates, which take other branches of the program
        k = settings.default_k
        features = torchscript.example_request(model, length, sessions, k=k).features
        none = torch.zeros((sessions, 0), dtype=torch.int64)
        packed = torchscript.pack_request(model, [t.cpu() for t in features], k, none, none)
        samples[label] = {_PACKED.name: packed.numpy()}
    return samples


def client_facts(fitted: Fitted, spec: dict[str, Any]) -> dict[str, Any]:
    """Return what clients need: columns of the log by tensor, types, limits of a request."""
    recipe = fitted.recipe
    columns = {ITEM: recipe.item} | {f.name: f.source for f in recipe.features}
    if recipe.timestamp is not None:
        columns["timestamp"] = recipe.timestamp.column
    return {
        "recipe": recipe.model_dump(mode="json"),
        "session": recipe.session,
        "session_type": fitted.session_type,
        "columns": columns,
        "types": {c["name"]: c["type"] for c in spec["columns"]},
        "scopes": {c["name"]: c["scope"] for c in spec["columns"]},
        "timestamp_type": None if spec["timestamp"] is None else spec["timestamp"]["type"],
        "time_needed": bool(spec["time_features"]),
        "default_k": spec["default_k"],
        "max_k": spec["max_k"],
    }


def _new_model(directory: Path, model_config: Any, version: int = 1) -> Path:
    config.write_config(directory, model_config)
    folder = directory / str(version)
    folder.mkdir()
    return folder


def _copy_adapter(version: Path) -> None:
    """Copy the committed `model.py` and the modules it imports, which Triton runs without us."""
    adapter = find_resource(f"triton_models/{STEPS[0]}/1/model.py")
    shutil.copyfile(adapter, version / "model.py")
    # located without an import: stages do not import each other
    runtime = importlib.util.find_spec("pipeline.serve.runtime")
    assert runtime is not None  # noqa: S101
    assert runtime.submodule_search_locations  # noqa: S101
    (version / "request_runtime").mkdir()
    for source in sorted(Path(runtime.submodule_search_locations[0]).glob("*.py")):
        shutil.copyfile(source, version / "request_runtime" / source.name)
