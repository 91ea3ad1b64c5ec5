"""A Triton model repository: encoder, model, decoder and the ensemble over them.

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

import torch

from pipeline.core.columns import ITEM
from pipeline.core.fitted import Fitted
from pipeline.core.resources import find_resource
from pipeline.export import config, tables, torchscript
from pipeline.export.config import Step, Tensor

TRITON_TYPES = {"int64": "TYPE_INT64", "float64": "TYPE_FP64", "string": "TYPE_STRING"}
STEPS = ("encoder", "model", "decoder")
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
    max_batch: int,
    version: int = 1,
    device: config.Device = "cpu",
) -> None:
    """Write four models below `directory`; clients ask the one called `name`."""
    spec = tables.encoder_spec(fitted, default_k, served.k)
    length = fitted.recipe.max_sequence_length
    requested = _request_tensors(spec)
    encoded = _encoded_tensors(served, length)
    num_items = Tensor("num_items", "TYPE_INT32", (1,))
    ranked = [
        Tensor("item_index", "TYPE_INT64", (served.k,)),
        Tensor("item_score", "TYPE_FP32", (served.k,)),
    ]
    answer = [
        # not item_id: tensors of an ensemble share one name space with its inputs
        Tensor("item_ids", TRITON_TYPES[fitted.item.type], (-1,)),
        Tensor("scores", "TYPE_FP32", (-1,)),
    ]

    encoder, model, decoder = step_names(name, version)
    folder = _new_model(
        directory / encoder,
        config.python_model(encoder, requested, [*encoded, num_items], max_batch, ragged=True),
    )
    _copy_adapter("encoder", folder)
    tables.write_encoder(folder, fitted, spec)

    numbered = [t._replace(name=f"{t.name}__{i}") for i, t in enumerate(encoded)]
    scored = [ranked[1]._replace(name="item_score__0"), ranked[0]._replace(name="item_index__1")]
    folder = _new_model(
        directory / model,
        config.torchscript_model(model, numbered, scored, max_batch, device),
    )
    torchscript.save(program, folder / "model.pt")

    folder = _new_model(
        directory / decoder,
        config.python_model(decoder, [*ranked, num_items], answer, max_batch, ragged=False),
    )
    _copy_adapter("decoder", folder)
    tables.write_decoder(folder, fitted)

    steps = [
        Step(
            encoder,
            {t.name: t.name for t in requested},
            {t.name: f"encoded_{t.name}" for t in encoded} | {"num_items": "num_items"},
        ),
        Step(
            model,
            {n.name: f"encoded_{e.name}" for n, e in zip(numbered, encoded, strict=True)},
            {"item_score__0": "item_score", "item_index__1": "item_index"},
        ),
        Step(
            decoder,
            {t.name: t.name for t in [*ranked, num_items]},
            {t.name: t.name for t in answer},
        ),
    ]
    parameters = {CLIENT_PARAMETER: json.dumps(_for_clients(fitted, spec))}
    folder = _new_model(
        directory / name,
        config.ensemble(name, requested, answer, steps, max_batch, parameters, version=version),
        version,
    )
    (folder / ".keep").touch()  # Triton wants a version directory, git and tar want a file in it


def step_names(name: str, version: int) -> tuple[str, str, str]:
    """Models of encoder, model and decoder behind one version of the ensemble `name`."""
    encoder, model, decoder = (f"{name}_{step}_v{version}" for step in STEPS)
    return encoder, model, decoder


def keep_version(previous: Path, directory: Path, name: str, version: int) -> None:
    """Put `version` of an older repository, its steps and its name, beside the new one.

    Copies, never links: a link is a change to the file that a server may watch, and it would load
    the ensemble again while half of what it finds is old.
    """
    for part in (*step_names(name, version), f"{name}/{version}"):
        if (previous / part).is_dir():
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(previous / part, directory / part, ignore=skipped)


def _request_tensors(spec: dict[str, Any]) -> list[Tensor]:
    """What a request may hold. All is optional for Triton, so that the encoder says what lacks:
    Triton's own answer to a missing input doesn't name it where requests share a batch."""
    tensors = []
    for column in spec["columns"]:
        dims = (1,) if column["scope"] == "session" else (-1,)
        tensors.append(Tensor(column["name"], TRITON_TYPES[column["type"]], dims, optional=True))
    if spec["timestamp"] is not None:
        kind = TRITON_TYPES[spec["timestamp"]["type"]]
        tensors.append(Tensor("timestamp", kind, (-1,), optional=True))
    tensors.append(Tensor("length", "TYPE_INT32", (1,), optional=True))
    tensors.append(Tensor("k", "TYPE_INT32", (1,), optional=True))
    return tensors


def _encoded_tensors(served: torchscript.ServedModel, length: int) -> list[Tensor]:
    tensors = []
    for name in served.names:
        kind = "TYPE_INT64" if name in served.model.inputs.tables else "TYPE_FP32"
        dims = (1,) if name in served.session_names else (length,)
        tensors.append(Tensor(name, kind, dims))
    return tensors


def _for_clients(fitted: Fitted, spec: dict[str, Any]) -> dict[str, Any]:
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


def _copy_adapter(part: str, version: Path) -> None:
    """The committed `model.py` and the encoder's code, which Triton's Python runs by themselves."""
    adapter = find_resource(f"triton_models/{part}/1/model.py")
    shutil.copyfile(adapter, version / "model.py")
    shutil.copyfile(_encoder_source(), version / "encoder.py")


def _encoder_source() -> Path:
    """`serve/encoder.py` as a file; the stages do not import each other."""
    found = importlib.util.find_spec("pipeline.serve.encoder")
    assert found is not None  # noqa: S101
    assert found.origin is not None  # noqa: S101
    return Path(found.origin)
