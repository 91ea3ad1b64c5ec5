"""Finds the first difference between two outputs of a case, except for documented ones."""

import base64
import fnmatch
import json
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file

# --- documented differences ----------------------------------------------------------------------

TIMINGS = {
    *("cost", "seconds", "sessions_per_second", "peak_memory_mb", "train_runtime"),
    *("train_samples_per_second", "train_steps_per_second"),
}
"""Keys of JSON with time and memory."""
VERSION = {"written_by", "made_from", "fingerprint"}
"""Keys of JSON with the version of pipeline, or with a hash that depends on it."""
JSON_FILES = ("manifest.json", "metrics.jsonl", "report.json", "evaluation.json")
"""Compared by value, without the keys above; all other files byte for byte."""
IGNORED_FILES = ("run/report.html", "recipe.yaml", "answers.jsonl", "server.log")
"""The page of a training has timings; report.json has its other numbers. Recipes are inputs, and
answers are compared separately."""
IGNORED_FOLDERS = ("repository/*",)
"""The served model is compared by its answers: its files hold code of the checkout."""

_SHOWN = 200
"""Largest number of characters of a value that are shown."""


@dataclass(frozen=True)
class Ignored:
    """Files and keys that the caller leaves out besides the documented differences."""

    files: tuple[str, ...] = ()
    """Patterns of names below the folder of a case."""
    keys: tuple[str, ...] = ()
    """Keys of JSON, at any depth."""


def compare_folders(before: Path, after: Path, ignored: Ignored) -> dict[str, str | None]:
    """Return the first difference of each file of a case without its answers, None if equal."""
    left_out = (*IGNORED_FILES, *IGNORED_FOLDERS, *ignored.files)
    names, names_after = _files(before, left_out), _files(after, left_out)
    comparisons: dict[str, str | None] = {}
    for name in sorted(names | names_after):
        if name in names and name in names_after:
            comparisons[name] = file_difference(before / name, after / name, ignored.keys)
        else:
            comparisons[name] = f"only {'BEFORE' if name in names else 'AFTER'}"
    return comparisons


def _files(folder: Path, left_out: tuple[str, ...]) -> set[str]:
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return {n for n in names if not any(fnmatch.fnmatch(n, pattern) for pattern in left_out)}


def file_difference(before: Path, after: Path, keys: tuple[str, ...] = ()) -> str | None:
    """Return the first difference of two files of the same name, None if they are equal.

    `keys` are left out of JSON, which is then compared by value.
    """
    if before.read_bytes() == after.read_bytes():
        return None
    if before.name in JSON_FILES:
        return _json_difference(before, after, {*TIMINGS, *VERSION, *keys})
    if before.suffix == ".json" and keys:
        return _json_difference(before, after, set(keys))
    kinds = {
        ".parquet": _parquet_difference,
        ".safetensors": _weights_difference,
        ".json": _json_difference,
        ".pbtxt": _text_difference,
        ".html": _text_difference,
    }
    detail = kinds.get(before.suffix, _bytes_difference)(before, after)
    return detail or "the same values in other bytes"


# --- JSON ----------------------------------------------------------------------------------------


def _json_difference(before: Path, after: Path, ignored: Collection[str] = ()) -> str | None:
    one, other = (
        [_without(document, ignored) for document in _documents(path)] for path in (before, after)
    )
    if json.dumps(one) == json.dumps(other):
        return None
    if before.suffix == ".json":  # one document
        return _value_difference(one[0], other[0], "") or "keys in another order"
    return _value_difference(one, other, "line ") or "keys in another order"


def _documents(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    document = json.loads(text)
    if path.name == "manifest.json":  # files are compared themselves, and some are left out
        document["files"] = sorted(document["files"])
        document.pop("sha256", None)  # of the rest, of which timings may differ
    return [document]


def _without(value: Any, keys: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, keys) for k, v in value.items() if k not in keys}
    return [_without(v, keys) for v in value] if isinstance(value, list) else value


def _value_difference(before: Any, after: Any, place: str) -> str | None:
    """Return `.key[row]: one != other`, None for equal values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() ^ after.keys()):
            return f"{place}.{key}: only in {'BEFORE' if key in before else 'AFTER'}"
        pairs = [(f"{place}.{key}", value, after[key]) for key, value in before.items()]
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            return f"{place}: {len(before)} values != {len(after)}"
        both = enumerate(zip(before, after, strict=True))
        pairs = [(f"{place}[{n}]", one, other) for n, (one, other) in both]
    else:
        same = json.dumps(before) == json.dumps(after)
        return None if same else f"{place}: {_shown(before)} != {_shown(after)}"
    differences = (_value_difference(one, other, path) for path, one, other in pairs)
    return next((difference for difference in differences if difference is not None), None)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


# --- tables, weights, text -----------------------------------------------------------------------


def _parquet_difference(before: Path, after: Path) -> str | None:
    """Return the column and row of the first difference."""
    one, other = pq.read_table(before), pq.read_table(after)
    for field, field_after in zip_longest(one.schema, other.schema):
        if field is None or field_after is None or not field.equals(field_after):
            return f"column {_field(field)} != {_field(field_after)}"
    if one.num_rows != other.num_rows:
        return f"{one.num_rows} rows != {other.num_rows}"
    for name in one.column_names:
        rows = zip(one[name].to_pylist(), other[name].to_pylist(), strict=True)
        for row, (value, value_after) in enumerate(rows):
            if repr(value) != repr(value_after):
                return f"column {name}, row {row}: {_shown(value)} != {_shown(value_after)}"
    return None


def _field(field: pa.Field | None) -> str:
    return "none" if field is None else f"{field.name} ({field.type})"


def _weights_difference(before: Path, after: Path) -> str | None:
    """Return the name and position of the first difference."""
    one, other = load_file(before), load_file(after)
    if one.keys() != other.keys():
        return f"weights of other names: {sorted(one.keys() ^ other.keys())[0]}"
    for name, values in one.items():
        if values.shape != other[name].shape or values.dtype != other[name].dtype:
            return f"{name}: {values.dtype}{values.shape} != {other[name].dtype}{other[name].shape}"
        bits, bits_after = (v.reshape(-1).view(np.uint8) for v in (values, other[name]))
        if len(places := np.flatnonzero(bits != bits_after)):
            place = int(places[0]) // values.dtype.itemsize
            weights = values.reshape(-1)[place], other[name].reshape(-1)[place]
            return f"{name}, weight {place}: {weights[0]!r} != {weights[1]!r}"
    return None


def _text_difference(before: Path, after: Path) -> str | None:
    lines = zip_longest(*(path.read_bytes().splitlines() for path in (before, after)))
    for number, (line, line_after) in enumerate(lines, 1):
        if line != line_after:
            return f"line {number}: {_shown(line)} != {_shown(line_after)}"
    return None


def _bytes_difference(before: Path, after: Path) -> str | None:
    one, other = before.read_bytes(), after.read_bytes()
    if len(one) != len(other):
        return f"{len(one)} bytes != {len(other)}"
    place = next(n for n, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
    return f"byte {place}: {one[place]} != {other[place]}"


# --- answers of a server -------------------------------------------------------------------------


def answer_differences(before: Path, after: Path) -> Iterator[str | None]:
    """Yield the difference of each request or None; refused ones are compared by status alone."""
    lines = [path.read_text(encoding="utf-8").splitlines() for path in (before, after)]
    for number, (line, line_after) in enumerate(zip_longest(*lines)):
        if line == line_after:
            yield None
        elif line is None or line_after is None:
            yield f"request {number}: no answer {'BEFORE' if line is None else 'AFTER'}"
        else:
            detail = _answer_difference(json.loads(line), json.loads(line_after))
            yield None if detail is None else f"request {number}: {detail}"


def _answer_difference(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    if before["status"] != after["status"]:
        return f"status {before['status']} != {after['status']}"
    if before["status"] != 200:
        return None
    one, other = _tensors(before), _tensors(after)
    for name in [*one, *(name for name in other if name not in one)]:
        tensor, tensor_after = one.get(name), other.get(name)
        if tensor == tensor_after:
            continue
        if tensor is None or tensor_after is None:
            return f"{name}: only {'BEFORE' if tensor_after is None else 'AFTER'}"
        if tensor[:2] != tensor_after[:2]:
            return f"{name}: {tensor[:2]} != {tensor_after[:2]}"
        values = enumerate(zip(tensor[2:], tensor_after[2:], strict=True))
        row, both = next((row, both) for row, both in values if both[0] != both[1])
        return f"{name}, value {row}: {both[0]} != {both[1]}"
    return "the same values in other bytes"


def _tensors(answer: dict[str, Any]) -> dict[str, list[Any]]:
    """Return type, shape and values by output; floats as text, so that NaN equals itself."""
    body = base64.b64decode(answer["body"])
    header_bytes = int(answer["header_bytes"] or len(body))
    header, content = json.loads(body[:header_bytes]), body[header_bytes:]
    tensors = {}
    for output in header["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        values = _values(output["datatype"], content[:size])
        tensors[output["name"]] = [output["datatype"], output["shape"], *values]
        content = content[size:]
    return tensors


def _values(datatype: str, content: bytes) -> list[Any]:
    if datatype == "FP32":
        return [repr(value) for value in np.frombuffer(content, "<f4").tolist()]
    if datatype == "INT64":
        return np.frombuffer(content, "<i8").tolist()
    texts, place = [], 0
    while datatype == "BYTES" and place < len(content):
        (length,) = struct.unpack_from("<I", content, place)
        texts.append(content[place + 4 : place + 4 + length])
        place += 4 + length
    return texts or [content]
