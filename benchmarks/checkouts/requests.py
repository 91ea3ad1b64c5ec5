"""Random requests for a served model, as bytes for Triton's HTTP."""

import base64
import json
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Datatype = Literal["BYTES", "INT64", "INT32", "FP64", "BOOL"]
_MISSING: dict[Datatype, Any] = {"BYTES": "", "INT64": -(2**63), "FP64": float("nan")}
_FORMATS = {"INT64": "<q", "INT32": "<i", "FP64": "<d", "BOOL": "<?"}
_OUTPUTS = ("item_ids", "scores", "embedding", "session_ids")


@dataclass(frozen=True)
class Input:
    """A column that a model takes."""

    name: str
    datatype: Datatype
    values: tuple[Any, ...]
    """Known and unknown values."""
    of_session: bool = False


@dataclass(frozen=True)
class Inputs:
    """All columns that a model takes."""

    item: Input
    session: Input
    features: tuple[Input, ...] = ()
    timestamp: Input | None = None


@dataclass(frozen=True)
class Tensor:
    """One input of a request."""

    datatype: Datatype
    rows: list[list[Any]]


def write_requests(path: Path, inputs: Inputs, count: int, seed: int) -> str:
    """Write random requests, one a line, and return the path."""
    chance = random.Random(seed)  # noqa: S311
    with path.open("w", encoding="utf-8") as file:
        for header_bytes, body in _random_requests(chance, inputs, count):
            line = {"header_bytes": header_bytes, "body": base64.b64encode(body).decode()}
            file.write(json.dumps(line) + "\n")
    return str(path)


def _random_requests(
    chance: random.Random, inputs: Inputs, count: int
) -> Iterator[tuple[int, bytes]]:
    for _ in range(count):
        is_flat = chance.random() < 0.1
        sessions = 1 if is_flat else chance.choice([1, 1, 1, 2, 5])
        length = chance.choice([1, 2, 3, 5, 10, 20, 21, 45])
        tensors = _columns(chance, inputs, sessions, length, is_flat=is_flat)
        tensors |= _options(chance, inputs, sessions, length, is_flat=is_flat)
        if chance.random() < 0.03:
            _damage(chance, tensors)
        outputs = [name for name in _OUTPUTS if chance.random() < 0.7] or ["item_ids"]
        yield encoded(tensors, outputs)


def _columns(
    chance: random.Random, inputs: Inputs, sessions: int, length: int, *, is_flat: bool
) -> dict[str, Tensor]:
    """Return the item and, each sometimes left out, the features and the time."""
    tensors = {"item_id": _drawn(chance, inputs.item, sessions, length)}
    for column in inputs.features:
        if chance.random() < 0.6:
            width = 1 if column.of_session and not is_flat else length
            tensors[column.name] = _drawn(chance, column, sessions, width)
    if inputs.timestamp is not None and chance.random() < 0.6:
        times = _drawn(chance, inputs.timestamp, sessions, length)
        if chance.random() < 0.5:
            times.rows.sort(key=str)
        tensors["timestamp"] = times
    return tensors


def _drawn(
    chance: random.Random, column: Input, sessions: int, width: int, missing: float = 0.03
) -> Tensor:
    def value() -> Any:
        if chance.random() < missing:
            return _MISSING[column.datatype]
        return chance.choice(column.values)

    return Tensor(column.datatype, [[value() for _ in range(width)] for _ in range(sessions)])


def _options(
    chance: random.Random, inputs: Inputs, sessions: int, length: int, *, is_flat: bool
) -> dict[str, Tensor]:
    """Return a random choice of k, length, exclude, candidates, filter_seen and session_id."""
    tensors = {}
    item = inputs.item
    if chance.random() < 0.5:
        tensors["k"] = Tensor("INT32", [[chance.choice([1, 2, 5, 20, 100])]] * sessions)
    if chance.random() < 0.3 and not is_flat:
        lengths = [[chance.randint(1, length)] for _ in range(sessions)]
        tensors["length"] = Tensor("INT32", lengths)
    if chance.random() < 0.25:
        tensors["exclude"] = _drawn(chance, item, sessions, chance.choice([1, 3, 30]))
    if chance.random() < 0.2:
        tensors["candidates"] = _drawn(chance, item, sessions, chance.choice([1, 5, 60]))
    if chance.random() < 0.3:
        tensors["filter_seen"] = Tensor("BOOL", [[chance.random() < 0.7]] * sessions)
    if is_flat or chance.random() < 0.3:
        width = length if is_flat else 1
        tensors["session_id"] = _drawn(chance, inputs.session, sessions, width, missing=0.003)
    return tensors


def _damage(chance: random.Random, tensors: dict[str, Tensor]) -> None:
    """Damage a request, so that it must be refused."""
    kind = chance.choice(["no item", "type", "k", "name"])
    if kind == "no item":
        del tensors["item_id"]
    elif kind == "type":
        tensors["item_id"] = Tensor("FP64", [[1.5] for _ in tensors["item_id"].rows])
    elif kind == "k":
        k = chance.choice([0, -1, 101, 2**31 - 1])
        tensors["k"] = Tensor("INT32", [[k] for _ in tensors["item_id"].rows])
    else:
        tensors["no_such_input"] = Tensor("INT32", [[1]])
    if not tensors:
        tensors["k"] = Tensor("INT32", [[1]])


def encoded(tensors: dict[str, Tensor], outputs: list[str]) -> tuple[int, bytes]:
    """Return (bytes of the JSON, JSON followed by the values); outputs are requested as bits."""
    descriptions, contents = [], []
    for name, tensor in tensors.items():
        content = b"".join(_bytes(tensor.datatype, value) for row in tensor.rows for value in row)
        contents.append(content)
        description: dict[str, Any] = {"name": name, "datatype": tensor.datatype}
        description["shape"] = [len(tensor.rows), len(tensor.rows[0])]
        description["parameters"] = {"binary_data_size": len(content)}
        descriptions.append(description)
    asked = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    header = json.dumps({"inputs": descriptions, "outputs": asked}).encode()
    return len(header), b"".join([header, *contents])


def _bytes(datatype: Datatype, value: Any) -> bytes:
    if datatype == "BYTES":
        text = str(value).encode()
        return struct.pack("<I", len(text)) + text
    return struct.pack(_FORMATS[datatype], value)
