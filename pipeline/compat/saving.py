"""A model as JSON and safetensors: its constructor arguments and its weights.

The JSON names classes of this package, activations and simple layers of torch, with their
arguments. Loading rebuilds these and reads their weights; it executes no other code. Custom
modules, functions and initializers have no such form. Initial weights are left out, as the file has
the trained weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.compat.construction import Rebuildable, Zeros
from pipeline.core.artifact import read_json, write_json
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.schema import Schema
from pipeline.model.architectures import find_architecture
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.inputs.tables import PretrainedEmbeddingsInitializer
from pipeline.model.masking import Masking
from pipeline.model.model import Model
from pipeline.model.model_files import MODEL_FILE, WEIGHTS_FILE, read_tensors, write_tensors

FORMAT = "pipeline.compat"
MOVING = "docs/tutorials/move-from-transformers4rec.md"
_PICKLES = frozenset({".pkl", ".bin"})
"""Suffixes of t4rec_model_class.pkl and pytorch_model.bin, which Transformers4Rec saves."""
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    activation.__name__: activation
    for activation in (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.LeakyReLU)
}


def _recurrent(layer: Any) -> dict[str, Any]:
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout")
    return {name: getattr(layer, name) for name in names}


_LAYERS: dict[str, tuple[type[nn.Module], Callable[[Any], dict[str, Any]]]] = {
    "Linear": (
        nn.Linear,
        lambda m: {
            "in_features": m.in_features,
            "out_features": m.out_features,
            "bias": m.bias is not None,
        },
    ),
    "LayerNorm": (nn.LayerNorm, lambda m: {"normalized_shape": [*m.normalized_shape]}),
    "Dropout": (nn.Dropout, lambda m: {"p": m.p}),
    "GRU": (nn.GRU, _recurrent),
    "LSTM": (nn.LSTM, _recurrent),
    "CrossEntropyLoss": (nn.CrossEntropyLoss, lambda m: {"label_smoothing": m.label_smoothing}),
    **{loss.__name__: (loss, lambda _: {}) for loss in (nn.MSELoss, nn.L1Loss, nn.HuberLoss)},
}
"""Layers and losses of torch with their constructor arguments."""


def save_model(model: Model, directory: Path) -> None:
    """Write a model of this package. ConfigError if it cannot be rebuilt from JSON."""
    description = {"format": FORMAT, "model": Encoder().encode(model, "the model")}
    description["list_length"] = getattr(model, "list_length", None)
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(model.state_dict(), directory / WEIGHTS_FILE)
    write_json(directory / MODEL_FILE, description)


def load_model(directory: Path) -> Model:
    """Rebuild a model of `save_model` in evaluation mode.

    ArtifactError if the files do not fit each other, and for a model of Transformers4Rec.
    """
    refuse_pickles(directory)
    description = read_json(directory / MODEL_FILE)
    if description.get("format") != FORMAT:
        raise ArtifactError(
            f"{directory} holds no model that `save` wrote. A run of `pipeline train` is opened by "
            "pipeline.Run.open."
        )
    try:
        model = Decoder().decode(description["model"])
        model.load_state_dict(read_tensors(directory / WEIGHTS_FILE))
        model.list_length = description["list_length"]
    except (
        KeyError, TypeError, ValueError, RuntimeError, OSError, AttributeError,
        ConfigError,
    ) as error:  # fmt: skip
        line = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{directory} does not hold a model of this version: {line}") from None
    evaluated: Model = model.eval()
    return evaluated


def refuse_pickles(path: Path) -> None:
    """ArtifactError if a file, or a file of a directory, is a pickle of Transformers4Rec."""
    files = path.iterdir() if path.is_dir() else [path]
    pickles = sorted(file for file in files if file.suffix in _PICKLES and file.is_file())
    if pickles and not (path / WEIGHTS_FILE).exists():
        raise ArtifactError(
            f"{pickles[0]} is a pickle, as Transformers4Rec saves models; loading it would run "
            f"code. Build the model again and train it: {MOVING}."
        )


class Encoder:
    """Encodes values as JSON; a repeated object is a reference by number."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._maskings: dict[int, int] = {}
        self._kept: list[Any] = []
        """Keeps objects alive, so that their `id` stays unique."""

    def encode(self, value: Any, where: str) -> Any:
        """Return the JSON of a value; `where` names it in an error."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Mapping):
            return {"mapping": {k: self.encode(v, f"{where}[{k!r}]") for k, v in value.items()}}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.encode(one, where) for one in value]
        if isinstance(value, Schema):
            return {"schema": value.to_dicts()}
        if isinstance(value, Rebuildable):
            return self._object(value, where)
        return self._part(value, where)

    def _object(self, value: Any, where: str) -> dict[str, Any]:
        if id(value) in self._numbers:
            return {"number": self._numbers[id(value)]}
        name = type(value).__name__
        if Rebuildable.classes.get(name) is not type(value):
            raise _unsaved(where, value)
        positional, keywords = value.construction
        encoded = {
            "class": name,
            "arguments": [self.encode(v, f"an argument of {name}") for v in positional],
            "keywords": {
                k: self.encode(_without_initial_values(k, v), f"`{k}` of {name}")
                for k, v in keywords.items()
            },
        }
        self._numbers[id(value)] = len(self._numbers)
        self._kept.append(value)
        masking = getattr(value, "masking", None)
        if isinstance(masking, Masking) and hasattr(value, "item_table"):
            self._maskings[id(masking)] = self._numbers[id(value)]
        return encoded

    def _part(self, value: Any, where: str) -> Any:
        """JSON of a value that is not an object of this package."""
        if isinstance(value, Masking) and id(value) in self._maskings:
            return {"masking_of": self._maskings[id(value)]}
        if isinstance(value, EncoderConfig):
            values = {f.name: getattr(value, f.name) for f in fields(value)}
            return {"config": value.name, "fields": self.encode(values, where)["mapping"]}
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, Zeros):
            return {"zeros": [*value.shape]}
        if isinstance(value, PretrainedEmbeddingsInitializer):
            return {"initializer": [*value.weight_matrix.shape], "trainable": value.trainable}
        return _of_torch(value, where)


def _of_torch(value: Any, where: str) -> dict[str, Any]:
    """JSON of an activation, its class, or a layer. ConfigError for other values."""
    if isinstance(value, type):
        name = value.__name__
        if _ACTIVATIONS.get(name) is value:
            return {"activation": name}
        raise _unsaved(where, value)
    kind: type = type(value)
    if _ACTIVATIONS.get(kind.__name__) is kind:
        return {"layer": kind.__name__, "keywords": {}}
    layer, arguments = _LAYERS.get(kind.__name__, (None, None))
    if layer is kind and arguments is not None:
        return {"layer": kind.__name__, "keywords": arguments(value)}
    raise _unsaved(where, value)


def _unsaved(where: str, value: Any) -> ConfigError:
    kind = getattr(value, "__name__", type(value).__name__)
    return ConfigError(
        f"The model cannot be saved: {where} holds a {kind}, of which JSON has no form. Keep its "
        "weights, model.state_dict(), by safetensors, and load them into a model that the same "
        "program builds."
    )


def _without_initial_values(argument: str, value: Any) -> Any:
    """Drop initializers, except those that determine the width of a table."""
    if argument != "embeddings_initializers" or value is None:
        return value
    return {k: v for k, v in value.items() if isinstance(v, PretrainedEmbeddingsInitializer)}


class Decoder:
    """Decodes the values that Encoder wrote."""

    def __init__(self) -> None:
        self._objects: list[Any] = []

    def decode(self, value: Any) -> Any:
        """Return the value of its JSON. KeyError for an unknown name."""
        if isinstance(value, list):
            return [self.decode(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "mapping" in value:
            return {k: self.decode(v) for k, v in value["mapping"].items()}
        if "class" in value:
            arguments = self.decode(value["arguments"])
            keywords = {k: self.decode(v) for k, v in value["keywords"].items()}
            self._objects.append(Rebuildable.classes[value["class"]](*arguments, **keywords))
            return self._objects[-1]
        if "number" in value:
            return self._objects[value["number"]]
        return self._part(value)

    def _part(self, value: dict[str, Any]) -> Any:
        kind, *_ = value
        return _FORMS[kind](self, value)

    def _masking(self, value: dict[str, Any]) -> Any:
        return self._objects[value["masking_of"]].masking

    def _config(self, value: dict[str, Any]) -> Any:
        named = {k: self.decode(v) for k, v in value["fields"].items()}
        return find_architecture(value["config"])(**named)


def _initializer(_: Decoder, value: dict[str, Any]) -> PretrainedEmbeddingsInitializer:
    return PretrainedEmbeddingsInitializer(torch.zeros(*value["initializer"]), value["trainable"])


def _layer(_: Decoder, value: dict[str, Any]) -> nn.Module:
    name = value["layer"]
    layer: Any = _ACTIVATIONS[name] if name in _ACTIVATIONS else _LAYERS[name][0]
    module: nn.Module = layer(**value["keywords"])
    return module


_FORMS: dict[str, Callable[[Decoder, dict[str, Any]], Any]] = {
    "masking_of": Decoder._masking,
    "config": Decoder._config,
    "schema": lambda _, value: Schema.from_dicts(value["schema"]),
    "zeros": lambda _, value: torch.zeros(*value["zeros"]),
    "activation": lambda _, value: _ACTIVATIONS[value["activation"]],
    "initializer": _initializer,
    "layer": _layer,
}
"""Function that builds a value, by the first key of its JSON."""
