"""Writes the fitted preprocessing as JSON and npy files for the request encoder of the server."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.core.artifact import write_json
from pipeline.core.columns import ELAPSED, ITEM, NULL, OUT_OF_VOCABULARY, PADDING, bucket_of
from pipeline.core.files import write_array
from pipeline.data.fitted import (
    WORKFLOW_FOLDER,
    Fitted,
    TargetEncoding,
    ValueType,
    Vocabulary,
)
from pipeline.data.values import UNKNOWN_INTEGER
from pipeline.recipe.durations import duration_microseconds
from pipeline.recipe.features import (
    BucketFeature,
    CategoryFeature,
    ExpressionFeature,
    Feature,
    HashedFeature,
    NumberFeature,
    TargetEncodedFeature,
)
from pipeline.recipe.preprocess import Preprocess

FURTHER_ITEMS = "item_id.further"


def encoder_spec(fitted: Fitted, default_k: int, max_k: int) -> dict[str, Any]:
    """Return how the encoder maps each column; see `pipeline/serve/runtime/request_encoder.py`."""
    recipe = fitted.recipe
    columns: list[dict[str, Any]] = [
        {"name": ITEM, "kind": "categorical", "scope": "interaction", "type": fitted.item.type}
    ]
    columns[0] |= _operators(fitted, ITEM, recipe.item, "interaction")
    columns += [_column_spec(fitted, feature) for feature in recipe.read_features]
    timestamp: dict[str, Any] | None = None
    if recipe.timestamp is not None:
        kind = fitted.timestamp_type
        # a Parquet timestamp is sent as text
        timestamp = {"type": kind, "unit": "iso" if kind == "string" else recipe.timestamp.unit}
        timestamp["format"] = recipe.timestamp.format
        if ELAPSED in recipe.timestamp.features:
            timestamp["elapsed"] = _statistics(fitted, ELAPSED, log=True)
    return {
        "max_sequence_length": recipe.max_sequence_length,
        "session_type": fitted.session_type,
        "filter_seen": recipe.filter_seen,
        "session_gap": recipe.session_gap and duration_microseconds(recipe.session_gap),
        "drop_repeats": recipe.drop_repeats,
        "missing": list(recipe.missing),
        "default_k": default_k,
        "max_k": max_k,
        "columns": columns,
        "expressions": [_expression_spec(fitted, f) for f in recipe.expression_features],
        "further_items": bool(len(further_items(fitted))),
        "statistics": list(fitted.expressions),
        "timestamp": timestamp,
        "time_features": list(recipe.timestamp.features) if recipe.timestamp else [],
    }


def _column_spec(fitted: Fitted, feature: Feature) -> dict[str, Any]:
    """Return how the encoder maps a column of a request."""
    column: dict[str, Any] = {
        "name": feature.name,
        "kind": feature.kind,
        "scope": "session" if feature.of == "session" else "interaction",
    }
    if feature in fitted.recipe.expression_inputs:
        kind = "string" if feature.kind == "categorical" else "float64"
        return {**column, "kind": "input", "type": kind, "log": False, "of_item": False}
    if isinstance(feature, CategoryFeature) and feature.values_per_interaction > 1:
        column |= {
            "type": "string",
            "values": fitted.vocabularies[feature.name].type,
            "separator": feature.separator,
            "columns": list(feature.columns),
        }
    elif isinstance(feature, BucketFeature):
        column |= {"type": "float64", "buckets": list(feature.buckets)}
    elif feature.kind == "categorical":
        column["type"] = fitted.vocabularies[feature.name].type
    elif isinstance(feature, TargetEncodedFeature):
        encoding = fitted.target_encodings[feature.name]
        column |= {
            "type": encoding.type,
            "mean_of_all": float(encoding.means()[-1]),
            **_statistics(fitted, feature.name, log=False),
        }
    elif isinstance(feature, NumberFeature):
        column |= {"type": "float64", **_statistics(fitted, feature.name, log=feature.log)}
    if isinstance(feature, HashedFeature) and feature.hash_buckets:
        column["hash_buckets"] = feature.hash_buckets
    column["of_item"] = _has_item_values(fitted, feature)
    return column | _operators(fitted, feature.name, feature.source, column["scope"])


def _expression_spec(fitted: Fitted, feature: ExpressionFeature) -> dict[str, Any]:
    """Return how the encoder computes and maps the value of an expression."""
    expression = feature.parsed
    spec: dict[str, Any] = {
        "name": feature.name,
        "kind": feature.kind,
        "scope": "session" if feature.of == "session" else "interaction",
        "tree": expression.tree,
        "numbers": list(expression.numbers),
        "categories": list(expression.categories),
        "type": "float64",
    }
    if isinstance(feature, BucketFeature):
        spec["buckets"] = list(feature.buckets)
    elif isinstance(feature, HashedFeature):
        spec |= {"type": "string", "hash_buckets": feature.hash_buckets}
    else:
        spec |= _statistics(fitted, feature.name, log=False)
    return spec


def _operators(fitted: Fitted, name: str, source: str, scope: str) -> dict[str, Any]:
    """Return the steps of a feature of a user's workflow, and the request column that it reads."""
    operators = fitted.operator_steps.get(name)
    if operators is None:
        return {}
    spec: dict[str, Any] = {"type": operators.type, "steps": list(operators.steps)}
    item = fitted.operator_steps.get(ITEM)
    is_item = source == fitted.recipe.item and item is not None and item.type == operators.type
    if is_item and scope == "interaction" and name != ITEM:
        spec["reads"] = ITEM  # a request need not send the same values twice
    if fitted.vocabularies.get(name) is not None:
        spec["values"] = fitted.vocabularies[name].type
    return spec


def workflow_spec(fitted: Fitted) -> dict[str, Any]:
    """Return the part of the specification that differs if the user's workflow encodes requests.

    The columns of a request are those of the log, and `codes` are the types of its categories.
    """
    item = {"name": ITEM, "kind": "categorical", "scope": "interaction", "type": fitted.item.type}
    inputs = [
        {"name": column["tensor"], "kind": "input", "type": column["type"], "log": False}
        | {"scope": column["scope"], "of_item": False}
        for column in _request_columns(fitted)
    ]
    return {
        "columns": [item, *inputs],
        "expressions": [],
        "outputs": [ITEM, *(feature.name for feature in fitted.recipe.features)],
        "codes": {name: v.type for name, v in fitted.vocabularies.items()},
    }


def workflow_recipe(fitted: Fitted) -> Preprocess:
    """Return the recipe whose requests have the raw columns of the log."""
    features = [
        {
            "name": column["tensor"],
            "column": column["name"],
            "kind": "continuous" if column["type"] == "float64" else "categorical",
            "of": column["scope"],
        }
        for column in _request_columns(fitted)
    ]
    values = fitted.recipe.model_dump(mode="json") | {"features": features}
    return Preprocess.from_dict(values, "the workflow")


def _request_columns(fitted: Fitted) -> list[dict[str, Any]]:
    """Return the columns of the log besides the item and the session."""
    assert fitted.workflow is not None  # noqa: S101
    graph = fitted.workflow.graph
    names = (fitted.recipe.item, graph["session"])
    return [column for column in graph["columns"] if column["name"] not in names]


def write_encoder(directory: Path, fitted: Fitted, spec: dict[str, Any]) -> None:
    """Write `encoder.json` and a table for each categorical column."""
    write_json(directory / "encoder.json", spec)
    if "codes" in spec and fitted.workflow is not None:
        fitted.workflow.write(directory / WORKFLOW_FOLDER)
    for name, vocabulary in fitted.vocabularies.items():
        write_values(directory, name, vocabulary)
    for name, encoding in fitted.target_encodings.items():
        write_values(directory, name, encoding)
        write_array(directory / f"{name}.means.npy", encoding.means()[:-1])
    for name, operators in fitted.operator_steps.items():
        for number, table in operators.tables.items():
            _write_lookup(directory, f"{name}.{number}", table)
    if spec["further_items"]:
        further = Vocabulary(type=fitted.item.type, values=further_items(fitted))
        write_values(directory, FURTHER_ITEMS, further)
    for feature in fitted.recipe.features:
        if _has_item_values(fitted, feature):
            values = _item_values(fitted, feature)
            write_array(directory / f"{feature.name}.of_item.npy", values)
    _write_expressions(directory, fitted)


def _write_expressions(directory: Path, fitted: Fitted) -> None:
    """Write the statistics of expressions, and the categories of items that they read."""
    for number, statistic in enumerate(fitted.expressions.values()):
        texts = pa.array(list(statistic.numbers), pa.binary()).cast(pa.string())
        numbers = np.array([*statistic.numbers.values(), statistic.default])
        write_values(directory, f"expression.{number}", Vocabulary(type="string", values=texts))
        write_array(directory / f"expression.{number}.numbers.npy", numbers)
    read = {name for f in fitted.recipe.expression_features for name in f.parsed.categories}
    for feature in fitted.recipe.read_features:
        if feature.name in read and _has_item_values(fitted, feature):
            column = _of_items(fitted, feature.name)
            if pa.types.is_integer(column.type):
                column = pc.if_else(pc.equal(column, UNKNOWN_INTEGER), None, column)
            texts = pc.fill_null(column.cast(pa.string()), "")
            name = f"{feature.name}.texts_of_item"
            write_values(directory, name, Vocabulary(type="string", values=texts))


def further_items(fitted: Fitted) -> pa.Array:
    """Return the raw ids of items that have fitted values but are not in the catalogue."""
    if fitted.items is None:
        return fitted.item.values.slice(0, 0)
    ids = fitted.items[ITEM].combine_chunks()
    return ids.filter(pc.invert(pc.is_in(ids, value_set=fitted.item.values)))


def _write_lookup(directory: Path, name: str, table: pa.Table) -> None:
    """Write the keys, and the values of a missing key, of an unknown key and of each key."""
    keys, results = (table[column].combine_chunks() for column in ("key", "value"))
    keys = keys.slice(2)
    kind: ValueType = "int64" if pa.types.is_integer(keys.type) else "string"
    write_values(directory, f"{name}.keys", Vocabulary(type=kind, values=keys))
    if pa.types.is_string(results.type):
        texts = Vocabulary(type="string", values=pc.fill_null(results, ""))
        write_values(directory, f"{name}.values", texts)
    else:
        numbers = results.to_numpy(zero_copy_only=False)
        write_array(directory / f"{name}.values.npy", numbers)


def write_values(directory: Path, name: str, vocabulary: Vocabulary | TargetEncoding) -> None:
    """Write values in the order of their indices: integers, or UTF-8 text with offsets."""
    if vocabulary.type == "int64":
        write_array(directory / f"{name}.npy", vocabulary.values.to_numpy())
        return
    encoded = [value.encode("utf-8") for value in vocabulary.values.cast(pa.string()).to_pylist()]
    offsets = np.cumsum([0, *(len(value) for value in encoded)], dtype=np.int64)
    joined = np.frombuffer(b"".join(encoded), np.uint8)
    write_array(directory / f"{name}.npy", joined)
    write_array(directory / f"{name}.offsets.npy", offsets)


def _has_item_values(fitted: Fitted, feature: Feature) -> bool:
    """Whether a server can fill in the feature from the fitted values of the items."""
    return fitted.items is not None and feature.columns[0] in fitted.items.column_names


def _item_values(fitted: Fitted, feature: Feature) -> NDArray[Any]:
    """Return (items,) int32 indices or float64 numbers: the catalogue, then `further_items`.

    A missing number is NaN. A multi-valued feature has (items, M) indices, 0 after the last.
    """
    columns = [_of_items(fitted, name) for name in feature.columns]
    vocabulary = fitted.vocabularies.get(feature.name)
    encoding = fitted.target_encodings.get(feature.name)
    if encoding is not None:
        rows = pc.index_in(columns[0], value_set=encoding.values)
        return encoding.means()[pc.fill_null(rows, -1).to_numpy()]
    if vocabulary is None:
        return pc.fill_null(columns[0], np.nan).to_numpy()
    indices = [
        _indices(values, vocabulary, PADDING if number else NULL)
        for number, values in enumerate(columns)
    ]
    return np.stack(indices, 1) if len(indices) > 1 else indices[0]


def _of_items(fitted: Fitted, column: str) -> pa.Array:
    """Return the raw values of a column for the catalogue, then for `further_items`."""
    assert fitted.items is not None  # noqa: S101
    items = pa.concat_arrays([fitted.item.values, further_items(fitted)])
    rows = pc.index_in(items, value_set=fitted.items[ITEM].combine_chunks())
    return fitted.items[column].combine_chunks().take(rows)


def _indices(values: pa.Array, vocabulary: Vocabulary, missing: int) -> NDArray[Any]:
    rows = pc.index_in(values, value_set=vocabulary.values)
    indices = pc.fill_null(rows, -1).to_numpy() + vocabulary.first
    unknown = rows.is_null().to_numpy(zero_copy_only=False)
    if vocabulary.hash_buckets:
        texts = values.filter(pa.array(unknown)).cast(pa.string()).to_pylist()
        indices[unknown] = [bucket_of(text or "", vocabulary.hash_buckets) for text in texts]
    else:
        indices[unknown] = OUT_OF_VOCABULARY
    indices[values.is_null().to_numpy(zero_copy_only=False)] = missing
    return indices.astype(np.int32)


def _statistics(fitted: Fitted, name: str, *, log: bool) -> dict[str, Any]:
    statistics = fitted.standardizations[name]
    return {"log": log, "mean": statistics.mean, "deviation": statistics.deviation}
