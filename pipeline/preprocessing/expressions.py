"""Features with `expression`: their columns, and the statistics of training that they read."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.data import values
from pipeline.data.fitted import ValueType
from pipeline.preprocessing.statistics import MergeBuffer
from pipeline.recipe.feature_expressions import statistics_of
from pipeline.recipe.features import ExpressionBucket
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve.runtime.expressions import (
    Categories,
    Sessions,
    Statistic,
    Values,
    evaluate,
    statistic_key,
)


def add_expressions(
    recipe: Preprocess, table: pa.Table, statistics: dict[str, Statistic]
) -> pa.Table:
    """Append the columns of the expressions, and drop columns that only expressions read.

    `table` holds interactions sorted by session and time.
    """
    if not recipe.expression_features:
        return table
    sessions = _sessions(recipe, table, statistics)
    for feature in recipe.expression_features:
        value = evaluate(feature.parsed.tree, sessions)
        if isinstance(value, Categories):
            column = _dictionary(value)
        elif isinstance(feature, ExpressionBucket):
            column = values.bucket(value, feature.buckets)
        else:
            column = pa.array(value)
        table = table.append_column(feature.name, column)
    return table.drop_columns([feature.name for feature in recipe.expression_inputs])


def expression_types(recipe: Preprocess) -> dict[str, ValueType]:
    """Types of the categories that expressions make, by feature."""
    return {
        f.name: "int64" if isinstance(f, ExpressionBucket) else "string"
        for f in recipe.expression_features
        if f.kind == "categorical"
    }


def part_statistics(recipe: Preprocess, table: pa.Table) -> dict[str, pa.Table]:
    """Statistics of some interactions by call: the `value` of each category, null for none, `sum`
    and `count` for `mean`, `min` for `first_seen`."""
    sessions = _sessions(recipe, table, {})
    parts = {}
    for call in _calls(recipe):
        categories = evaluate(call[-1], sessions)
        numbers = evaluate(call[1] if call[0] == "mean" else TIMESTAMP, sessions)
        assert isinstance(categories, Categories)  # noqa: S101
        assert not isinstance(numbers, Categories)  # noqa: S101
        codes, numbers = categories.codes, np.broadcast_to(numbers, len(categories.codes))
        has_number = ~np.isnan(numbers)
        codes = pa.array(codes[has_number], mask=codes[has_number] < 0)
        texts = pa.array(categories.texts, pa.binary()).take(codes)
        rows = pa.table({"value": texts, "number": numbers[has_number]})
        functions = ["sum", "count"] if call[0] == "mean" else ["min"]
        grouped = rows.group_by("value", use_threads=False)
        grouped = grouped.aggregate([("number", function) for function in functions])
        parts[statistic_key(call)] = grouped.rename_columns(["value", *functions])
    return parts


def merge_statistics(
    recipe: Preprocess, parts: Iterable[dict[str, pa.Table]], base: dict[str, Statistic]
) -> dict[str, Statistic]:
    """Statistics of all parts, in their order.

    Statistics of `base` stay, so that a model reads the same inputs; first times of new values are
    added.
    """
    buffer = MergeBuffer(lambda _, tables: _merged(tables))
    for part in parts:
        for key, table in part.items():
            buffer.add(key, table)
    tables = dict(buffer.merged())
    statistics = {}
    for call in _calls(recipe):
        key = statistic_key(call)
        if key in tables:
            statistics[key] = _statistic(tables[key])
        if key in base:
            new = statistics[key].numbers if call[0] == "first_seen" and key in statistics else {}
            statistics[key] = Statistic(new | base[key].numbers, base[key].default)
    return statistics


def _calls(recipe: Preprocess) -> list[list[Any]]:
    calls = [call for f in recipe.expression_features for call in statistics_of(f.parsed.tree)]
    return list({statistic_key(call): call for call in calls}.values())


def _merged(tables: list[pa.Table]) -> pa.Table:
    names = [name for name in tables[0].column_names if name != "value"]
    functions = [(name, "min" if name == "min" else "sum") for name in names]
    merged = pa.concat_tables(tables).group_by("value", use_threads=False).aggregate(functions)
    return merged.rename_columns(["value", *names]).sort_by("value")


def _statistic(table: pa.Table) -> Statistic:
    by_category = table.filter(pc.is_valid(table["value"]))
    texts = by_category["value"].to_pylist()
    if "min" in table.column_names:
        return Statistic(dict(zip(texts, by_category["min"].to_pylist(), strict=True)), np.nan)
    means = pc.divide(by_category["sum"], by_category["count"]).to_pylist()
    mean = pc.divide(pc.sum(table["sum"]), pc.sum(table["count"])).as_py()
    return Statistic(dict(zip(texts, means, strict=True)), np.nan if mean is None else mean)


def _sessions(recipe: Preprocess, table: pa.Table, statistics: dict[str, Statistic]) -> Sessions:
    """Inputs of the expressions from a table of interactions."""
    columns: dict[str, Values] = {TIMESTAMP: table[TIMESTAMP].to_numpy() / 1e6}
    expressions = [feature.parsed for feature in recipe.expression_features]
    for name in {name for expression in expressions for name in expression.numbers}:
        columns[name] = table[name].to_numpy()
    for name in {ITEM, *(name for expression in expressions for name in expression.categories)}:
        columns[name] = _categories(table[name])
    session = _codes(table[SESSION])
    is_start = np.diff(session, prepend=session[:1] - 1) != 0
    starts = np.maximum.accumulate(np.where(is_start, np.arange(len(session)), 0))
    return Sessions(columns, starts, statistics)


def _categories(column: pa.ChunkedArray) -> Categories:
    """Categories of a column of integers or text."""
    encoded = _encoded(column)
    texts = encoded.dictionary.cast(pa.string()).cast(pa.binary()).to_pylist()
    codes = encoded.indices.cast(pa.int64()).fill_null(-1).to_numpy()
    if pa.types.is_integer(encoded.dictionary.type):  # a value that is no integer is missing
        is_integer = pc.not_equal(encoded.dictionary, values.UNKNOWN_INTEGER)
        is_integer = np.append(is_integer.to_numpy(zero_copy_only=False), False)
        codes = np.where(is_integer[codes], codes, -1)
    return Categories(codes, texts)


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    array = column.combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    return array if pa.types.is_dictionary(array.type) else array.dictionary_encode()


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return _encoded(column).indices.to_numpy().astype(np.int64)


def _dictionary(categories: Categories) -> pa.DictionaryArray:
    codes = pa.array(categories.codes, pa.int32(), mask=categories.codes < 0)
    texts = pa.array(categories.texts, pa.binary()).cast(pa.string())
    return pa.DictionaryArray.from_arrays(codes, texts)
