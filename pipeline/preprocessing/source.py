"""Logs to interactions in canonical columns and types.

Whatever is dropped or set to missing on the way is counted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.errors import DataError
from pipeline.data import values
from pipeline.data.fitted import TimestampType, ValueType
from pipeline.logs.files import BLOCK_ROWS, check_features, scan_log
from pipeline.logs.row_counts import Report
from pipeline.preprocessing.computed import Computed
from pipeline.preprocessing.tables import Joined
from pipeline.recipe.preprocess import Preprocess, Timestamp


@dataclass(frozen=True)
class Interactions:
    """A log in canonical columns."""

    frame: pd.DataFrame
    types: dict[str, ValueType]
    """Of the session, the item and each categorical feature."""
    timestamp_type: TimestampType | None
    """None where the order of the rows stands for time."""
    report: Report


@dataclass(frozen=True)
class Block:
    """Some interactions, whose types may be narrower than those of the log."""

    table: pa.Table
    """Ids as int64 or as text, numbers as float64, times as microseconds; rows with neither a
    session nor a time are left out."""
    types: dict[str, ValueType]
    timestamp_type: TimestampType | None
    report: Report
    """What happened between the rows as they were read and those of `table`."""


def id_columns(recipe: Preprocess) -> list[str]:
    """The session, the item and the columns of each feature that is read as categories."""
    features = recipe.scalar_features
    return [SESSION, ITEM, *(f.name for f in features if f.kind == "categorical" or f.mean_of)]


def raw_blocks(
    recipe: Preprocess, files: Iterable[Path], report: Report, rows: int = BLOCK_ROWS
) -> Iterator[tuple[int, pa.Table]]:
    """Canonical columns as the files hold them, with the number of rows before each block."""
    files = list(files)
    check_features(recipe, files)
    before = 0
    waiting: list[pa.Table] = []

    def gathered() -> tuple[int, pa.Table]:
        nonlocal before
        table = pa.concat_tables(waiting)
        waiting.clear()
        before += table.num_rows
        return before - table.num_rows, table

    for file in files:
        for table in scan_log(recipe, file, report, rows):
            if waiting and not table.schema.equals(waiting[0].schema):
                yield gathered()
            waiting.append(table)
            if sum(part.num_rows for part in waiting) >= rows:
                yield gathered()
    if waiting:
        yield gathered()


def typed_block(
    recipe: Preprocess, table: pa.Table, before: int, fitted_types: dict[str, ValueType] | None
) -> Block:
    """A block as `raw_blocks` gives it, in types.

    Where `fitted_types` is given, categorical values are read as those types; otherwise integers
    stay integers and all else becomes text.
    """
    report = Report()
    columns, types = _ids(recipe, table, fitted_types or {}, report)
    for feature in recipe.features:
        if feature.kind == "continuous":
            name = feature.name if feature.mean_of is None else feature.target_column
            source = feature.mean_of or name
            numbers, bad = values.numbers([values.plain(table[name])], positive=feature.log)
            columns[name] = pa.array(numbers)
            report.repaired[f"values of {source} that are no usable number"] += bad
    timestamp_type: TimestampType | None = None
    if recipe.timestamp is None:
        times = np.arange(before, before + table.num_rows, dtype=np.int64)
    else:
        chunk = values.plain(table[TIMESTAMP])
        times, timestamp_type = values.microseconds([chunk], recipe.timestamp)
    columns[TIMESTAMP] = pa.array(times)
    found = pa.table(columns)
    found = _keep(found, pc.is_valid(found[SESSION]), "rows without a session id", report)
    if recipe.timestamp is not None:
        found = _timed(recipe.timestamp, found, report)
    return Block(found, types, timestamp_type, report)


def _ids(
    recipe: Preprocess, table: pa.Table, wanted: dict[str, ValueType], report: Report
) -> tuple[dict[str, pa.Array], dict[str, ValueType]]:
    """Columns of ids and categories, and their types."""
    read = {SESSION: values.category_chunk(values.plain(table[SESSION]), None)}  # never encoded
    read[SESSION] = (values.plain_text(read[SESSION][0]), read[SESSION][1])
    read[ITEM] = values.category_chunk(values.plain(table[ITEM]), wanted.get(ITEM))
    for feature in recipe.features:
        name = feature.name
        if feature.kind == "continuous" and feature.mean_of is None:
            continue
        column, kind = values.plain(table[name]), wanted.get(feature.columns[0])
        if feature.buckets:
            numbers, bad = values.numbers([column], positive=False)
            read[name] = values.bucket(numbers, feature.buckets), "int64"
            report.repaired[f"values of {name} that are no usable number"] += bad
        elif feature.values_per_interaction > 1:
            found, kind = values.several(column, feature.separator, len(feature.columns), kind)
            read |= {c: (part, kind) for c, part in zip(feature.columns, found, strict=True)}
        else:
            read[name] = values.category_chunk(column, kind)
    for name, (column, kind) in read.items():
        if kind == wanted.get(name) == "int64":
            texts = pc.sum(pc.equal(column, values.UNKNOWN_INTEGER)).as_py() or 0
            report.counted[f"values of {name} that are no integer, as all that are known"] += texts
    columns = {name: column for name, (column, _) in read.items()}
    return columns, {name: kind for name, (_, kind) in read.items()}


def _timed(timestamp: Timestamp, table: pa.Table, report: Report) -> pa.Table:
    """Rows whose times are to be used."""
    timed = pc.not_equal(table[TIMESTAMP], values.NO_TIME)
    table = _keep(table, timed, "rows without a usable time", report)
    first, last = timestamp.bounds
    if first is not None:
        inside = pc.greater_equal(table[TIMESTAMP], first)
        table = _keep(table, inside, f"rows before {timestamp.earliest}", report)
    if last is not None:
        inside = pc.less_equal(table[TIMESTAMP], last)
        table = _keep(table, inside, f"rows after {timestamp.latest}", report)
    return table


def _keep(table: pa.Table, kept: pa.ChunkedArray, reason: str, report: Report) -> pa.Table:
    """Drop the rows that are not `kept` and say how many."""
    dropped = len(kept) - (pc.sum(kept).as_py() or 0)
    report.dropped[reason] += dropped
    return table.filter(kept) if dropped else table


def common_types(
    recipe: Preprocess, blocks: Iterable[tuple[dict[str, ValueType], TimestampType | None]]
) -> tuple[dict[str, ValueType], TimestampType | None]:
    """Of the log whose blocks have these types."""
    found = list(blocks)
    types = {
        name: values.common_type(types[name] for types, _ in found) for name in id_columns(recipe)
    }
    for feature in recipe.features:
        if feature.kind == "categorical":
            kind = values.common_type(types[name] for name in feature.columns)
            types |= dict.fromkeys(feature.columns, kind)
    order: tuple[TimestampType, ...] = ("string", "float64", "int64")
    times = {kind for _, kind in found}
    return types, next((kind for kind in order if kind in times), None)


def check_not_empty(files: Iterable[Path], rows: int, report: Report) -> None:
    """DataError for a log without a usable row."""
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.counts.items())
        raise DataError(
            f"{', '.join(map(str, files))}: no usable row among {report.rows} "
            f"({reasons or 'nothing in it'}). Check `session`, `timestamp` and `delimiter`."
        )


def read_interactions(
    recipe: Preprocess, files: list[Path], fitted_types: dict[str, ValueType] | None = None
) -> Interactions:
    """Read `files` as one log that fits into memory, in the order of its rows.

    DataError for a missing file, a missing column, an unreadable file or a log without a usable
    row.
    """
    report = Report()
    blocks = []
    joined, computed = Joined(recipe, report), Computed(recipe, None, report)
    for before, table in raw_blocks(recipe, files, report):
        table = computed.add_to(joined.add_to(table))
        blocks.append(typed_block(recipe, table, before, fitted_types))
        report.add(blocks[-1].report)
    check_not_empty(files, sum(block.table.num_rows for block in blocks), report)
    types, timestamp_type = common_types(recipe, [(b.types, b.timestamp_type) for b in blocks])
    tables = []
    for block in blocks:
        columns = {name: block.table[name].combine_chunks() for name in block.table.column_names}
        for name, kind in types.items():
            columns[name] = values.plain_text(values.as_type(columns[name], kind))
        tables.append(pa.table(columns))
    table = pa.concat_tables(tables)
    return Interactions(to_frame(table), types, timestamp_type, report)


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Integers as int64, or Int64 where some are missing; text of few values as categories."""
    columns = {name: _series(table[name]) for name in table.column_names}
    return pd.DataFrame(columns, copy=False)  # nothing writes into it


def _series(column: pa.ChunkedArray) -> pd.Series:
    if pa.types.is_integer(column.type) and column.null_count:
        return column.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return column.to_pandas()
