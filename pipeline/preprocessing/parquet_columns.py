"""Columns of sessions from another workflow, chosen by the tags and names of their schema."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.columns import FIRST_ITEM, ITEM, NULL, OUT_OF_VOCABULARY, SESSION
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.fitted import Fitted, ValueType, Vocabulary
from pipeline.data.schema import ColumnSchema, Schema, Tags
from pipeline.data.values import as_integers, as_text, integers_or_unknown, is_text

_AGGREGATE = re.compile(r"[-_](list|first|last|count|nunique|sum|mean|min|max|std|var|median)$")
_VALUES = ("list", "first", "last")
"""Aggregates whose columns hold values of the log."""


@dataclass(frozen=True)
class ParquetColumn:
    """A column of the Parquet files and its place in the data directory."""

    source: str
    name: str
    """Name in the data directory."""
    raw: str
    """Name in the log, and in `unique.RAW.parquet`."""
    kind: Literal["categorical", "continuous"]
    is_list: bool
    num_rows: int
    """Rows of the embedding table by the schema, 0 if unknown."""
    is_code: bool = False
    """Whether the values are categories that the vocabulary encodes, not its indices."""

    @property
    def is_index(self) -> bool:
        """Whether the values are indices of an embedding table, not numbers."""
        return self.kind == "categorical"


def choose_columns(schema: Schema) -> tuple[ParquetColumn, list[ParquetColumn], list[str]]:
    """The item, the features, and notes on columns left out. ConfigError without an item."""
    items = [c for c in schema if Tags.ITEM_ID in c.tags and c.is_list and _holds_values(c.name)]
    if len(items) != 1:
        tagged = ", ".join(c.name for c in items) or "none"
        raise ConfigError(
            f"The schema has {tagged} as list tagged item_id, expected one. Tag the column of "
            "items with Tags.ITEM_ID."
        )
    features: list[ParquetColumn] = []
    left_out: list[str] = []
    for column in schema:
        is_feature = {Tags.CATEGORICAL, Tags.CONTINUOUS} & column.tags
        targets = {Tags.TARGET, Tags.BINARY_CLASSIFICATION, Tags.REGRESSION} & column.tags
        if column.name == items[0].name:
            continue
        if is_feature and not targets and _holds_values(column.name) and not _is_id(column):
            features.append(_column(column))
        elif is_feature:
            left_out.append(column.name)
    columns = [_column(items[0], ITEM), *features]
    for feature in features:
        sources = [other.source for other in columns if other.name == feature.name]
        if len(sources) > 1:
            raise ConfigError(
                f"The columns {' and '.join(sources)} of the schema would both have the name "
                f"{feature.name!r}. Leave one out, or rename it."
            )
    notes = [f"Left out {', '.join(left_out)}: no values of the log."] if left_out else []
    return columns[0], features, notes


def _is_id(column: ColumnSchema) -> bool:
    return bool({Tags.SESSION_ID, Tags.ITEM_ID, "user_id"} & column.tags)


def _holds_values(name: str) -> bool:
    match = _AGGREGATE.search(name)
    return match is None or match[1] in _VALUES


def _column(column: ColumnSchema, name: str | None = None) -> ParquetColumn:
    raw = _AGGREGATE.sub("", column.name)
    safe = re.sub(r"\W+", "_", raw).strip("_")
    kind: Any = "categorical" if Tags.CATEGORICAL in column.tags else "continuous"
    return ParquetColumn(column.name, name or safe, raw, kind, column.is_list, column.num_rows)


def session_column(schema: Schema) -> str | None:
    """Column of the session id, by its tag or its name."""
    for column in schema:
        if not column.is_list and (Tags.SESSION_ID in column.tags or column.name == SESSION):
            return column.name
    return None


def vocabulary_files(
    columns: Sequence[ParquetColumn], categories: Path | None, places: Sequence[Path]
) -> dict[str, Path]:
    """Existing `unique.COLUMN.parquet` of the categorical columns, by column name."""
    if categories is not None and not categories.is_dir():
        raise ConfigError(f"--categories {categories} is not a folder of `unique.COLUMN.parquet`.")
    near = [place / up / "categories" for place in places for up in (".", "..")]
    tables = {}
    for column in (c for c in columns if c.is_index):
        for folder in [categories] if categories is not None else near:
            path = folder / f"unique.{column.raw}.parquet"
            if path.is_file():
                tables[column.name] = path
                break
    return tables


def read_vocabulary(
    column: ParquetColumn, tables: Mapping[str, Path], files: Mapping[str, Sequence[Path]]
) -> Vocabulary:
    """Vocabulary of raw values from a file; without one, the indices are the values."""
    path = tables.get(column.name)
    if path is None:
        last = column.num_rows - 1 if column.num_rows else _largest(column, files)
        return Vocabulary(type="int64", values=pa.array(np.arange(FIRST_ITEM, last + 1)))
    vocabulary = vocabulary_in(path, column.raw)
    num_values = len(vocabulary.values)
    if column.num_rows and num_values + FIRST_ITEM != column.num_rows:
        raise DataError(
            f"{path} has {num_values} values, the schema {column.num_rows - FIRST_ITEM} of "
            f"{column.source!r}. Are they of one workflow?"
        )
    if len(vocabulary.values.unique()) < num_values:
        raise DataError(f"{path} has a value twice, so it does not tell the indices of values.")
    return vocabulary


def vocabulary_in(path: Path, column: str) -> Vocabulary:
    """Values in a Categorify file, in the order of their indices."""
    table = pq.read_table(path)
    if column not in table.column_names:
        raise DataError(f"{path} has no column {column!r}. Is it from NVTabular's Categorify?")
    values = table[column].combine_chunks()
    # releases of NVTabular differ in whether the file begins with rows of reserved indices
    values = values.filter(pc.is_valid(values))
    integers = as_integers(values)  # floats too: pandas converts integers with missing values
    if integers is not None and not is_text(values.type):
        return Vocabulary(type="int64", values=integers)
    return Vocabulary(type="string", values=as_text(values))


def vocabulary_of_codes(column: ParquetColumn, files: Sequence[Path]) -> Vocabulary:
    """Vocabulary of the values of a column in `files`, the most frequent first."""
    counts: dict[Any, int] = {}
    for path in files:
        values = _flat(pq.read_table(path, columns=[column.source])[column.source])
        for entry in pc.value_counts(as_codes(values).drop_null()):
            value = entry["values"].as_py()
            counts[value] = counts.get(value, 0) + entry["counts"].as_py()
    ordered = sorted(counts, key=lambda value: (-counts[value], value))
    is_integer = all(isinstance(value, int) for value in ordered)
    kind: ValueType = "int64" if is_integer else "string"
    return Vocabulary(type=kind, values=pa.array(ordered, pa.int64() if is_integer else None))


def _flat(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array.flatten() if hasattr(array, "flatten") else array


def as_codes(values: pa.Array) -> pa.Array:
    """Categories as int64, or as text if one of them is not an integer."""
    integers = as_integers(values)
    return as_text(values) if integers is None else integers


def encode(values: pa.Array, vocabulary: Vocabulary) -> pa.Array:
    """(N,) int64 indices of categories."""
    codes = as_integers(values) if vocabulary.type == "int64" else as_text(values)
    if codes is None:
        codes = integers_or_unknown(values)
    indices = pc.add(pc.index_in(codes, value_set=vocabulary.values), vocabulary.first)
    indices = pc.fill_null(indices, OUT_OF_VOCABULARY).cast(pa.int64())
    return pc.if_else(pc.is_valid(codes), indices, NULL)


def notes_on(columns: Sequence[ParquetColumn], tables: Mapping[str, Any]) -> list[str]:
    """Lines on ids that are codes, and on numbers that requests give as the workflow made them."""
    codes = [c.name for c in columns if c.is_index and c.name not in tables]
    numbers = [c.name for c in columns if not c.is_index]
    notes = []
    if codes:
        notes.append(
            f"The ids of {', '.join(codes)} are codes of the workflow, as no `unique.*.parquet` "
            "says what they stand for. Give the folder with --categories."
        )
    if numbers:
        notes.append(
            f"Requests give {', '.join(numbers)} as the workflow made them: no file says how."
        )
    return notes


def _largest(column: ParquetColumn, files: Mapping[str, Sequence[Path]]) -> int:
    values = [
        pq.read_table(path, columns=[column.source])[column.source].combine_chunks()
        for paths in files.values()
        for path in paths
    ]
    flat = [v.flatten() if column.is_list else v for v in values]
    return max([FIRST_ITEM, *(pc.max(v).as_py() or 0 for v in flat)])


def schema_of(columns: Sequence[ParquetColumn], fitted: Fitted, length: int) -> Schema:
    """Schema of the data directory; lists hold up to `length` interactions and a target."""
    described = []
    for column in columns:
        longest = length + 1 if column.is_list else 0
        if column.is_index:
            tags = [Tags.ITEM_ID, Tags.ITEM] if column.name == ITEM else []
            described.append(
                ColumnSchema.create_categorical(
                    column.name,
                    len(fitted.vocabularies[column.name].values),
                    tags=tags,
                    is_list=column.is_list,
                    max_length=longest,
                )
            )
        else:
            described.append(
                ColumnSchema.create_continuous(
                    column.name, is_list=column.is_list, max_length=longest
                )
            )
    return Schema(tuple(described))
