"""A Triton model repository: a Python model that encodes requests, the model, and an ensemble.

The ensemble has one step. That step, `requests`, encodes all requests of an execution together,
calls the model once for all of them and looks up the ids. With three steps, Triton would pass each
request through three models separately (`docs/concepts/inside-the-server.md`).

Each export to the same directory is a new version. Its steps are separate models whose names
contain the version; those of earlier versions stay beside them, unchanged. A server that polls for
changes loads the new steps and then the ensemble, so that no request combines the tables of one
export with the model of another. Each kept version also has an ensemble of its own, NAME_vN, which
an A/B test calls while another version is served.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP, version_alias
from pipeline.core.errors import ConfigError
from pipeline.core.files import find_resource
from pipeline.data.fitted import Fitted
from pipeline.exporting import request_tables as tables
from pipeline.exporting import torchscript
from pipeline.exporting import triton_config as config
from pipeline.exporting.options import ExportOptions
from pipeline.model.program import save_program

TRITON_TYPES = {"int64": "TYPE_INT64", "float64": "TYPE_FP64", "string": "TYPE_STRING"}
STEPS = ("requests", "model")
ENSEMBLE_FILE = "ensemble.pbtxt"
"""Copy of the ensemble's configuration in the directory of its version, for a rollback; Triton
reads the one in the directory of the model."""
CLIENT_PARAMETER = "pipeline"
"""Parameter of the ensemble that tells clients how columns of a log become tensors."""
_PACKED = config.tensor("packed__0", "TYPE_INT32")
_LISTS = config.tensor("lists__0", "TYPE_INT32")
"""Input and output of the model, with the names that Triton's PyTorch backend requires."""
_NO_BYTECODE = shutil.ignore_patterns("__pycache__")


def write_repository(
    directory: Path,
    fitted: Fitted,
    model: torchscript.InferenceModel,
    program: torch.jit.ScriptModule,
    options: ExportOptions,
    version: int,
) -> None:
    """Write the models of a version below `directory`; clients call the one of `options.name`."""
    requests_name, model_name = step_names(options.name, version)
    spec = request_spec(fitted, model, options) | {"model": model_name}
    inputs, outputs = _request_tensors(spec), _answer_tensors(spec)

    requests = config.python_model(requests_name, inputs, outputs, options.max_batch)
    version_directory = _new_model(directory, requests)
    _copy_adapter(version_directory)
    tables.write_encoder(version_directory, fitted, spec)

    samples = _samples(model, fitted.recipe.max_sequence_length, options)
    version_directory = _new_model(
        directory,
        config.torchscript_model(
            model_name, _PACKED, _LISTS, options.max_batch, options.device, samples
        ),
    )
    config.write_samples(directory / model_name, samples, _PACKED)
    save_program(program, version_directory / "model.pt")

    facts = {CLIENT_PARAMETER: json.dumps(client_facts(fitted, spec))}
    for name in (options.name, version_alias(options.name, version)):
        version_directory = _new_model(
            directory,
            config.ensemble(
                name, inputs, outputs, requests_name, options.max_batch, facts, version=version
            ),
            version,
        )
        shutil.copyfile(directory / name / config.CONFIG_FILE, version_directory / ENSEMBLE_FILE)


def request_spec(
    fitted: Fitted, model: torchscript.InferenceModel, options: ExportOptions
) -> dict[str, Any]:
    """Return how requests become inputs of the model: `encoder.json` without its name."""
    spec = tables.encoder_spec(fitted, options.default_k, options.max_k)
    if options.workflow_backend:
        spec |= tables.workflow_spec(fitted)
    return spec | {
        "max_batch": options.max_batch,
        "packing": model.names,
        "width": model.width,
        "ranks_items": model.model.ranks_items,
        "targets": model.targets,
        "item_targets": model.item_targets,
    }


def step_names(name: str, version: int) -> tuple[str, str]:
    """Return the names of the two models behind one version of the ensemble `name`."""
    requests, model = (f"{name}_{step}_v{version}" for step in STEPS)
    return requests, model


def keep_version(previous: Path, directory: Path, name: str, version: int) -> None:
    """Copy the models of one `version` of an older repository beside those of the new one.

    Copies, not links: a link changes the inode, upon which a polling server would load the ensemble
    again while half of the files are old.
    """
    for part in (*step_names(name, version), version_alias(name, version), f"{name}/{version}"):
        if (previous / part).is_dir():
            shutil.copytree(previous / part, directory / part, ignore=_NO_BYTECODE)


def keep_model(previous: Path, directory: Path, name: str, versions: Iterable[int | str]) -> None:
    """Copy another model of an older repository unchanged. ConfigError for a name in use."""
    steps = [
        step
        for version in versions
        for step in (*step_names(name, int(version)), version_alias(name, int(version)))
    ]
    for part in (name, *steps):
        if (directory / part).exists():
            raise ConfigError(
                f"--name needs the model name {part}, which the repository uses. Choose another."
            )
        if (previous / part).is_dir():
            shutil.copytree(previous / part, directory / part, ignore=_NO_BYTECODE)


def _request_tensors(spec: dict[str, Any]) -> list[config.TensorConfig]:
    """Return the inputs of a request.

    All are optional for Triton, so that the request runtime names a missing one, which Triton's
    own error does not do if requests share a batch.
    """
    types = {column["name"]: column["type"] for column in spec["columns"]}
    if spec["timestamp"] is not None:
        types[TIMESTAMP] = spec["timestamp"]["type"]
    types[SESSION] = spec["session_type"]
    kinds = {name: TRITON_TYPES[kind] for name, kind in types.items()}
    single = {"length": "TYPE_INT32"}
    if spec["ranks_items"]:
        kinds |= {"exclude": kinds[ITEM], "candidates": kinds[ITEM]}
        single |= {"k": "TYPE_INT32", "filter_seen": "TYPE_BOOL"}
    return [
        *(config.tensor(name, kind, optional=True) for name, kind in kinds.items()),
        *(config.tensor(name, kind, 1, optional=True) for name, kind in single.items()),
    ]


def _answer_tensors(spec: dict[str, Any]) -> list[config.TensorConfig]:
    item = next(column["type"] for column in spec["columns"] if column["name"] == ITEM)
    kinds = {"num_known": "TYPE_INT32", "session_ids": TRITON_TYPES[spec["session_type"]]}
    if spec["ranks_items"]:
        # not item_id: tensors of an ensemble share one name space with its inputs
        lists = {"item_ids": TRITON_TYPES[item], "scores": "TYPE_FP32"}
        kinds = lists | kinds | {"embedding": "TYPE_FP32"}
        kinds |= dict.fromkeys(spec["item_targets"], "TYPE_FP32")
    kinds |= dict.fromkeys(spec["targets"], "TYPE_FP32")
    return [config.tensor(name, kind) for name, kind in kinds.items()]


def _samples(
    model: torchscript.InferenceModel, length: int, options: ExportOptions
) -> dict[str, NDArray[Any]]:
    """Return the requests that warm up the model: one session, and a few."""
    samples = {}
    for label, sessions in (("one", 1), ("few", min(8, options.max_batch))):
        # excluded items and candidates would take other branches of the program
        request = torchscript.example_request(model, length, sessions, k=options.default_k)
        none = torch.zeros_like(request.excluded[:, :0])
        packed = request._replace(excluded=none, candidates=none).packed(model)
        samples[label] = packed.cpu().numpy()
    return samples


def client_facts(fitted: Fitted, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the facts for clients: the recipe, types of the tensors, limits of a request."""
    recipe = tables.workflow_recipe(fitted) if "codes" in spec else fitted.recipe
    return {
        "recipe": recipe.model_dump(mode="json"),
        "types": {c["name"]: c["type"] for c in spec["columns"]},
        "scopes": {c["name"]: c["scope"] for c in spec["columns"]},
        "timestamp_type": None if spec["timestamp"] is None else spec["timestamp"]["type"],
        "default_k": spec["default_k"],
        "max_k": spec["max_k"],
        "ranks_items": spec["ranks_items"],
        "targets": spec["targets"],
        "item_targets": spec["item_targets"],
    }


def _new_model(directory: Path, model_config: config.ModelConfig, version: int = 1) -> Path:
    """Write the configuration of a model and return the directory of its version."""
    config.write_config(directory / model_config["name"], model_config)
    folder = directory / model_config["name"] / str(version)
    folder.mkdir()
    return folder


def _copy_adapter(version: Path) -> None:
    """Copy the committed `model.py` and its modules, which Triton runs without this package."""
    shutil.copyfile(find_resource(f"triton_models/{STEPS[0]}/1/model.py"), version / "model.py")
    # located without an import: stages do not import each other
    runtime = Path(__file__).parents[1] / "serve" / "runtime"
    shutil.copytree(runtime, version / "request_runtime", ignore=_NO_BYTECODE)
