"""Blocks of a log in canonical columns and types.

Every row that is dropped and every value that is set to missing is counted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, ORDER, SESSION, SPLIT, TIMESTAMP
from pipeline.core.errors import DataError
from pipeline.data import values
from pipeline.data.fitted import TimestampType, ValueType
from pipeline.data.times import NO_TIME, check_unit, microseconds
from pipeline.logs import files as log_files
from pipeline.logs.row_counts import NO_OBJECT, RowCounts
from pipeline.recipe.features import (
    BucketFeature,
    CategoricalFeature,
    CategoryFeature,
    Feature,
    NumberFeature,
    TargetEncodedFeature,
)
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.timestamp import Timestamp

NO_USABLE_TIME = "rows without a usable time"
_MAX_NAMES = 3
"""Files that the error of a log without a usable row names."""


@dataclass(frozen=True)
class Block:
    """Part of the interactions; its types may be narrower than those of the whole log."""

    table: pa.Table
    """Ids as int64 or text, numbers as float64, times as microseconds; rows without a session or a
    time are dropped."""
    types: dict[str, ValueType]
    """Type of each id column."""
    timestamp_type: TimestampType | None
    report: RowCounts
    """Rows and values lost in the conversion to `table`."""


def id_columns(recipe: Preprocess) -> list[str]:
    """Session, item, and the columns of features that are read as categories."""
    encoded = (CategoricalFeature, TargetEncodedFeature)
    return [SESSION, ITEM, *(f.name for f in recipe.read_scalar_features if isinstance(f, encoded))]


def raw_blocks(
    recipe: Preprocess, files: Iterable[Path], report: RowCounts, rows: int | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """Yield (number of rows before, table) of raw blocks of about `rows` (BLOCK_ROWS) rows.

    A block has one schema; it may span files.
    """
    rows = log_files.BLOCK_ROWS if rows is None else rows
    files = list(files)
    log_files.check_features(recipe, files)
    before = 0
    pending: list[pa.Table] = []

    def flush() -> tuple[int, pa.Table]:
        nonlocal before
        table = pa.concat_tables(pending)
        pending.clear()
        before += table.num_rows
        return before - table.num_rows, table

    for file in files:
        for table in log_files.scan_log(recipe, file, report, rows):
            if pending and not table.schema.equals(pending[0].schema):
                yield flush()
            pending.append(table)
            if sum(part.num_rows for part in pending) >= rows:
                yield flush()
    if pending:
        yield flush()


def typed_block(
    recipe: Preprocess, table: pa.Table, before: int, fitted_types: dict[str, ValueType] | None
) -> Block:
    """Convert a block of `raw_blocks` to canonical types.

    Id columns get `fitted_types`; by default columns of integers become int64 and all others text.
    `before` is the number of rows before the block.
    """
    report = RowCounts()
    columns, types = _id_values(recipe, table, fitted_types or {}, report, before)
    for feature in recipe.read_features:
        if feature.kind == "continuous":
            name = source = feature.name
            if isinstance(feature, TargetEncodedFeature):
                name, source = feature.target_column, feature.mean_of
            is_log = isinstance(feature, NumberFeature) and feature.log
            raw = values.to_array(table[name])
            numbers, bad = values.numbers([raw], positive=is_log, decimal=recipe.decimal)
            columns[name] = pa.array(numbers)
            _count_numbers(source, raw, bad, report, before)
    timestamp_type: TimestampType | None = None
    if recipe.timestamp is None:
        times = np.arange(before, before + table.num_rows, dtype=np.int64)
    else:
        raw = values.to_array(table[TIMESTAMP])
        check_unit(raw, recipe.timestamp)
        times, timestamp_type = microseconds([raw], recipe.timestamp)
        _add_example(report, NO_USABLE_TIME, raw, times == NO_TIME, before)
    columns[TIMESTAMP] = pa.array(times)
    for number in range(len(recipe.order)):
        name = f"{ORDER}{number}"
        raw = values.to_array(table[name])
        numbers, bad = values.numbers([raw], positive=False, decimal=recipe.decimal)
        columns[name] = pa.array(numbers)
        _count_numbers(recipe.order[number], raw, bad, report, before)
    if recipe.split_column is not None:
        columns[SPLIT] = values.as_text(values.to_array(table[SPLIT]))
    typed = pa.table(columns)
    typed = _filter(typed, pc.is_valid(typed[SESSION]), "rows without a session id", report)
    if recipe.timestamp is not None:
        typed = _filter_times(recipe.timestamp, typed, report)
    return Block(typed, types, timestamp_type, report)


def _id_values(
    recipe: Preprocess,
    table: pa.Table,
    types: dict[str, ValueType],
    report: RowCounts,
    before: int,
) -> tuple[dict[str, pa.Array], dict[str, ValueType]]:
    """Columns of ids and categories with their types."""
    session, session_type = values.category_chunk(values.to_array(table[SESSION]), None)
    # sessions are never encoded: no fitted type, no dictionary
    read: dict[str, tuple[pa.Array, ValueType]] = {
        SESSION: (values.decode_dictionary(session), session_type),
        ITEM: values.category_chunk(values.to_array(table[ITEM]), types.get(ITEM)),
    }
    for feature in recipe.read_features:
        if isinstance(feature, CategoricalFeature | TargetEncodedFeature):
            column = values.to_array(table[feature.name])
            if isinstance(feature, BucketFeature):
                numbers, bad = values.numbers([column], positive=False, decimal=recipe.decimal)
                _count_numbers(feature.name, column, bad, report, before)
                read[feature.name] = values.bucket(numbers, feature.buckets), "int64"
            else:
                read |= _category_values(feature, column, types.get(feature.columns[0]))
    for name, (column, kind) in read.items():
        if kind == types.get(name) == "int64":
            num_text = pc.sum(pc.equal(column, values.UNKNOWN_INTEGER)).as_py() or 0
            reason = f"values of {name} that are no integer, as all that are known"
            report.warnings[reason] += num_text
    columns = {name: column for name, (column, _) in read.items()}
    return columns, {name: kind for name, (_, kind) in read.items()}


def _category_values(
    feature: Feature, column: pa.Array, kind: ValueType | None
) -> dict[str, tuple[pa.Array, ValueType]]:
    """Values and type of each column of a feature, read as `kind` if it is known."""
    if isinstance(feature, CategoryFeature) and feature.values_per_interaction > 1:
        parts, common = values.split_values(column, feature.separator, len(feature.columns), kind)
        return {c: (part, common) for c, part in zip(feature.columns, parts, strict=True)}
    return {feature.name: values.category_chunk(column, kind)}


def _count_numbers(
    name: str, raw: pa.Array, bad: NDArray[Any], report: RowCounts, before: int
) -> None:
    reason = f"values of {name} that are no usable number"
    report.repaired[reason] += int(np.count_nonzero(bad))
    _add_example(report, reason, raw, bad, before)


def _add_example(
    report: RowCounts, reason: str, raw: pa.Array, mask: NDArray[np.bool_], before: int
) -> None:
    """Keep the first raw value under `mask` as an example, null only if all are null.

    `before` is the number of rows before those of `raw`.
    """
    if reason in report.examples or not mask.any():
        return
    filled = mask & raw.is_valid().to_numpy(zero_copy_only=False)
    at = int((filled if filled.any() else mask).argmax())
    report.add_example(reason, values.example(raw, at), before + at + 1)


def _filter_times(timestamp: Timestamp, table: pa.Table, report: RowCounts) -> pa.Table:
    """Drop rows without a usable time and those outside the bounds of the recipe."""
    has_time = pc.not_equal(table[TIMESTAMP], NO_TIME)
    table = _filter(table, has_time, NO_USABLE_TIME, report)
    first, last = timestamp.bounds
    if first is not None:
        mask = pc.greater_equal(table[TIMESTAMP], first)
        table = _filter(table, mask, f"rows before {timestamp.earliest}", report)
    if last is not None:
        mask = pc.less_equal(table[TIMESTAMP], last)
        table = _filter(table, mask, f"rows after {timestamp.latest}", report)
    return table


def _filter(table: pa.Table, mask: pa.ChunkedArray, reason: str, report: RowCounts) -> pa.Table:
    """Keep the rows of `mask` and count the others under `reason`."""
    num_dropped = len(mask) - (pc.sum(mask).as_py() or 0)
    report.dropped[reason] += num_dropped
    return table.filter(mask) if num_dropped else table


def common_types(
    recipe: Preprocess, blocks: Iterable[tuple[dict[str, ValueType], TimestampType | None]]
) -> tuple[dict[str, ValueType], TimestampType | None]:
    """Types of a log from the types of its blocks: text if any block has text."""
    blocks = list(blocks)
    types = {
        name: values.common_type(types[name] for types, _ in blocks) for name in id_columns(recipe)
    }
    for feature in recipe.read_features:
        if feature.kind == "categorical":
            kind = values.common_type(types[name] for name in feature.columns)
            types |= dict.fromkeys(feature.columns, kind)
    timestamp_types = {kind for _, kind in blocks}
    order: tuple[TimestampType, ...] = ("string", "float64", "int64")
    return types, next((kind for kind in order if kind in timestamp_types), None)


def check_not_empty(files: Iterable[Path], rows: int, report: RowCounts) -> None:
    """DataError if a log has no usable row."""
    if not rows:
        names = [str(file) for file in files]
        if len(names) > _MAX_NAMES:
            names = [*names[:_MAX_NAMES], f"and {len(names) - _MAX_NAMES} more files"]
        reasons = ", ".join(report.sentences)
        advice = "Check `session`, `timestamp` and `delimiter`."
        if not report.rows:
            advice = "Expected a log with rows."
        elif 2 * report.dropped[NO_USABLE_TIME] > report.rows:
            advice = (
                "Set `timestamp.unit` for numbers, or `timestamp.format` for other text, such as "
                "`%d.%m.%Y %H:%M`."
            )
        elif report.dropped[NO_OBJECT] == report.rows:
            advice = "Expected an object a line, as `jq -c .` writes them."
        raise DataError(
            f"{', '.join(names)}: no usable row among {report.rows} "
            f"({reasons or 'nothing in it'}). {advice}"
        )


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Convert to a frame that shares memory with the table where possible.

    Integers are int64, or Int64 if some are null; dictionaries become categories.
    """
    columns = {name: _series(table[name]) for name in table.column_names}
    return pd.DataFrame(columns, copy=False)


def _series(column: pa.ChunkedArray) -> pd.Series:
    if pa.types.is_integer(column.type) and column.null_count:
        return column.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return column.to_pandas()
