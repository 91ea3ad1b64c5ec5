"""A Triton model repository: a Python model that reads requests, the model, an ensemble over both.

The ensemble has one step. That step, `requests`, encodes all requests of an execution together,
asks the model for them at once and looks the ids up. As three steps of Triton's own ensemble each
request passed through three models by itself (`docs/serving.md`).

Each export into the same place is a new version. Its steps are models of their own, whose names
tell the version; those of the version before stay beside them, untouched. A server that looks for
changes loads the new steps and then turns the ensemble over to them, so that no request meets the
tables of one export and the model of another.
"""

import importlib.util
import json
import shutil
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
from pipeline.exporting.triton_config import Step, Tensor

TRITON_TYPES = {"int64": "TYPE_INT64", "float64": "TYPE_FP64", "string": "TYPE_STRING"}
STEPS = ("requests", "model")
CLIENT_PARAMETER = "pipeline"
"""Parameter of the ensemble that tells clients how a log's columns become tensors."""


def write_repository(
    directory: Path,
    name: str,
    fitted: Fitted,
    served: torchscript.ServedModel,
    program: torch.jit.ScriptModule,
    *,
    default_k: int,
    max_k: int,
    max_batch: int,
    version: int = 1,
    device: config.Device = "cpu",
) -> None:
    """Write three models below `directory`; clients ask the one called `name`."""
    requests, model = step_names(name, version)
    inputs, outputs = _program_tensors()
    spec = request_spec(fitted, served, default_k=default_k, max_k=max_k, max_batch=max_batch)
    spec["model"] = model
    requested, answer = _request_tensors(spec), _answer_tensors(fitted, spec)

    folder = _new_model(
        directory / requests,
        config.python_model(requests, requested, answer, max_batch),
    )
    _copy_adapter(folder)
    tables.write_encoder(folder, fitted, spec)

    described = config.torchscript_model(model, inputs, outputs, max_batch, device)
    samples = _samples(served, fitted.recipe.max_sequence_length, default_k, max_batch)
    config.warm_up(described, samples)
    folder = _new_model(directory / model, described)
    config.write_samples(directory / model, samples)
    torchscript.save(program, folder / "model.pt")

    step = Step(requests, {t.name: t.name for t in requested}, {t.name: t.name for t in answer})
    parameters = {CLIENT_PARAMETER: json.dumps(client_facts(fitted, spec))}
    folder = _new_model(
        directory / name,
        config.ensemble(name, requested, answer, [step], max_batch, parameters, version=version),
        version,
    )
    (folder / ".keep").touch()  # Triton wants a version directory, git and tar want a file in it


def request_spec(
    fitted: Fitted,
    served: torchscript.ServedModel,
    *,
    default_k: int,
    max_k: int,
    max_batch: int,
) -> dict[str, Any]:
    """`encoder.json`, but for the name of the model that is asked: what encodes requests and
    packs them for the model."""
    return tables.encoder_spec(fitted, default_k, max_k) | {
        "max_batch": max_batch,
        "packing": served.packing,
        "width": served.width,
    }


def step_names(name: str, version: int) -> tuple[str, str]:
    """What reads requests, and the model, behind one version of the ensemble `name`."""
    requests, model = (f"{name}_{step}_v{version}" for step in STEPS)
    return requests, model


def keep_version(previous: Path, directory: Path, name: str, version: int) -> None:
    """Put `version` of an older repository, its steps and its name, beside the new one.

    Copies, never links: a link is a change to the file that a server may watch, and it would load
    the ensemble again while half of what it finds is old.
    """
    steps = (path.name for path in previous.glob(f"{name}_*_v{version}"))
    for part in (*sorted(steps), f"{name}/{version}"):
        if (previous / part).is_dir():
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(previous / part, directory / part, ignore=skipped)


def _request_tensors(spec: dict[str, Any]) -> list[Tensor]:
    """What a request may hold. All is optional for Triton, so that the reader says what lacks:
    Triton's own answer to a missing input doesn't name it where requests share a batch."""
    item = TRITON_TYPES[next(c["type"] for c in spec["columns"] if c["name"] == ITEM)]
    kinds = {column["name"]: TRITON_TYPES[column["type"]] for column in spec["columns"]}
    if spec["timestamp"] is not None:
        kinds[TIMESTAMP] = TRITON_TYPES[spec["timestamp"]["type"]]
    kinds |= {SESSION: TRITON_TYPES[spec["session_type"]], "exclude": item, "candidates": item}
    tensors = [Tensor(name, kind, (-1,), optional=True) for name, kind in kinds.items()]
    for name, kind in (("length", "TYPE_INT32"), ("k", "TYPE_INT32"), ("filter_seen", "TYPE_BOOL")):
        tensors.append(Tensor(name, kind, (1,), optional=True))
    return tensors


def _answer_tensors(fitted: Fitted, spec: dict[str, Any]) -> list[Tensor]:
    return [
        # not item_id: tensors of an ensemble share one name space with its inputs
        Tensor("item_ids", TRITON_TYPES[fitted.item.type], (-1,)),
        Tensor("scores", "TYPE_FP32", (-1,)),
        Tensor("embedding", "TYPE_FP32", (-1,)),
        Tensor("session_ids", TRITON_TYPES[spec["session_type"]], (-1,)),
    ]


def _program_tensors() -> tuple[list[Tensor], list[Tensor]]:
    """Of the model, with the names that Triton's PyTorch backend wants."""
    return [Tensor("packed__0", "TYPE_INT32", (-1,))], [Tensor("lists__0", "TYPE_INT32", (-1,))]


def _samples(
    served: torchscript.ServedModel, length: int, k: int, max_batch: int
) -> dict[str, dict[str, np.ndarray]]:
    """Requests that a model is asked before it is called ready: one session, and a few."""
    [[name, *_]] = _program_tensors()[0]
    samples = {}
    for label, sessions in (("one", 1), ("few", min(8, max_batch))):
        # without filters: what is left out or a candidate has ways of its own
        features = torchscript.example(served, length, sessions, k=k).features
        none = torch.zeros((sessions, 0), dtype=torch.int64)
        tensors = torchscript.packed(served, [t.cpu() for t in features], k, none, none)
        samples[label] = {name: tensors.numpy()}
    return samples


def client_facts(fitted: Fitted, spec: dict[str, Any]) -> dict[str, Any]:
    """Columns of the log by tensor name, types, and the bounds of a request."""
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
    """The committed `model.py` and what it imports, which Triton's Python runs by themselves."""
    adapter = find_resource(f"triton_models/{STEPS[0]}/1/model.py")
    shutil.copyfile(adapter, version / "model.py")
    # the stages do not import each other
    found = importlib.util.find_spec("pipeline.serve.runtime")
    assert found is not None  # noqa: S101
    assert found.submodule_search_locations  # noqa: S101
    (version / "request_runtime").mkdir()
    for source in sorted(Path(found.submodule_search_locations[0]).glob("*.py")):
        shutil.copyfile(source, version / "request_runtime" / source.name)
