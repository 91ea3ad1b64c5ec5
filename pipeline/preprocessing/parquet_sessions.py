"""Import of sessions from another workflow: Parquet with a schema, as NVTabular writes.

The result is a data directory. Columns are chosen by their tags: the item is the list tagged
item_id, features are tagged categorical or continuous. With Categorify's `unique.COLUMN.parquet`,
indices map back to raw values, so that recommendations and requests have raw ids; without, the
indices are the ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.core.artifact import new_artifact
from pipeline.core.columns import (
    ITEM,
    NULL,
    PADDING,
    SCHEMA_FILE,
    SESSION,
    SESSIONS_DIRECTORY,
    TIMESTAMP,
)
from pipeline.core.errors import DataError, closest
from pipeline.core.parquet_bounds import check_expansion
from pipeline.data.fingerprint import fingerprint_of
from pipeline.data.fitted import Fitted, Standardization, ValueType
from pipeline.data.schema import Schema
from pipeline.preprocessing.parquet_columns import (
    ParquetColumn,
    choose_columns,
    encode,
    notes_on,
    read_vocabulary,
    schema_of,
    session_column,
    vocabulary_files,
)
from pipeline.preprocessing.session_files import SessionWriter
from pipeline.recipe.preprocess import Preprocess

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class SessionTables:
    """Parquet files of sessions, with the columns of the data directory."""

    files: Mapping[str, Sequence[Path]]
    """Files by part."""
    columns: Sequence[ParquetColumn]
    """The item first."""
    session: str | None
    """Column of the session id; None if the files have none."""
    fitted: Fitted


# Long: the docstring and the steps in their order.
def import_sessions(
    files: Mapping[str, Sequence[Path]],
    schema_file: Path,
    out: Path,
    *,
    categories: Path | None = None,
    max_sequence_length: int | None = None,
) -> dict[str, Any]:
    """Write a data directory of the sessions in Parquet files, by part; return its facts.

    `files` are those of train, valid and test; `categories` is the folder of
    `unique.COLUMN.parquet`, by default a folder `categories` beside the files or the schema.
    `max_sequence_length` is L, by default the longest list of the schema or of the files.
    ArtifactError for a schema that cannot be read; DataError if the files do not match the schema.
    """
    schema = Schema.from_json(schema_file)
    item, features, notes = choose_columns(schema)
    columns = [item, *features]
    places = [schema_file.parent, *(path.parent for paths in files.values() for path in paths)]
    tables = vocabulary_files(columns, categories, places)
    session = session_column(schema)
    first = read_schema(files["train"][0])
    if session is not None and session not in first.names:
        session = None
    check_columns(files, columns, session, str(schema_file))
    length = max_sequence_length
    if length is None:
        length = schema[item.source].max_length or longest_list(files, item)
    recipe = data_recipe([item, *features], session, length)
    vocabularies = {c.name: read_vocabulary(c, tables, files) for c in columns if c.is_index}
    notes += notes_on(columns, tables)
    fitted = Fitted(
        recipe=recipe,
        session_type=session_type(first, session),
        timestamp_type=None,
        vocabularies=vocabularies,
        standardizations={
            c.name: Standardization(mean=0.0, deviation=1.0) for c in features if not c.is_index
        },
    )
    settings = {"schema": schema_file.read_text("utf-8"), "length": length}
    every = [path for part in PARTS for path in files.get(part, ())]
    fingerprint = fingerprint_of(settings, [*every, *tables.values()], [])
    facts: dict[str, Any] = {"engine": "parquet"}
    with new_artifact(out, "data", facts, fingerprint=fingerprint) as directory:
        facts |= write_sessions(directory, SessionTables(files, columns, session, fitted))
        facts["notes"] = notes + facts["notes"]
    return facts


def write_sessions(directory: Path, tables: SessionTables) -> dict[str, Any]:
    """Write fitted state, sessions and schema of a data directory; return their facts."""
    fitted = tables.fitted
    length = fitted.recipe.max_sequence_length
    fitted.write(directory)
    counter = _Counter()
    parts = {
        part: _write_part(directory, part, tables, counter)
        for part in PARTS
        if tables.files.get(part)
    }
    text = schema_of(tables.columns, fitted, length).to_proto_text()
    (directory / SCHEMA_FILE).write_text(text, encoding="utf-8")
    nulls = f"{counter.null_items:,} items are null; they are kept as missing ones."
    return {
        "sessions": parts,
        "notes": [nulls] if counter.null_items else [],
        "catalogue_items": len(fitted.item.values),
        "max_sequence_length": length,
        "left_out": {"sessions": counter.left_out},
        "rows": {"input": {"read": counter.read, "kept": counter.read - counter.left_out}},
    }


def parts_of(
    inputs: Sequence[Path], valid: Sequence[Path] = (), test: Sequence[Path] = ()
) -> dict[str, list[Path]]:
    """Parquet files of each part, by the names of folders and files; the rest is for training.

    `valid` and `test` are further files or folders of these parts. DataError without a training
    file.
    """
    parts: dict[str, list[Path]] = {name: [] for name in PARTS}
    for path in inputs:
        for file in _parquet_files(path):
            within = (
                [file.stem, *file.relative_to(path).parts[:-1]] if path.is_dir() else [file.stem]
            )
            part = next((name for name in PARTS[1:] if name in within), "train")
            parts[part].append(file)
    for name, paths in (("valid", valid), ("test", test)):
        parts[name] += [file for path in paths for file in _parquet_files(path)]
    if not parts["train"]:
        raise DataError("There is no Parquet file to train on. Give a file or a folder of them.")
    return parts


def _parquet_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist. Expected a Parquet file or a folder of them.")
    return sorted(f for f in path.rglob("*.parquet") if "categories" not in f.parts)


def read_schema(path: Path) -> pa.Schema:
    """Schema of a Parquet file. DataError if it is not a Parquet file."""
    try:
        check_expansion(path)
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from None


def check_columns(
    files: Mapping[str, Sequence[Path]],
    columns: Sequence[ParquetColumn],
    session: str | None,
    described_by: str,
) -> None:
    """DataError for a file that lacks a column, or has one of another type.

    `described_by` names the file that describes the columns.
    """
    names = [column.source for column in columns]
    names += [] if session is None else [session]
    for path in (path for paths in files.values() for path in paths):
        schema = read_schema(path)
        for name in names:
            if name not in schema.names:
                raise DataError(
                    f"{path} has no column {name!r}, which {described_by} describes; "
                    f"{closest(name, schema.names)}"
                )
        for column in columns:
            _check_type(path, column, schema.field(column.source).type)


def _check_type(path: Path, column: ParquetColumn, kind: pa.DataType) -> None:
    is_list = any(
        check(kind)
        for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )
    value = kind.value_type if is_list else kind
    is_number = pa.types.is_integer(value) or pa.types.is_floating(value)
    fits = pa.types.is_integer(value) if column.is_index else is_number
    fits |= column.is_code or pa.types.is_null(value)
    if is_list != column.is_list or not fits:
        values = "the indices of Categorify" if column.is_index else "numbers"
        lists = ", in lists, one per session" if column.is_list else ", one per session"
        raise DataError(f"{path}: {column.source!r} is {kind}, expected {values}{lists}.")


def session_type(first: pa.Schema, session: str | None) -> ValueType:
    """Type of the session id in a file."""
    if session is None:
        return "string"
    return "int64" if pa.types.is_integer(first.field(session).type) else "string"


def data_recipe(
    columns: Sequence[ParquetColumn],
    session: str | None,
    length: int,
    *,
    missing: Sequence[str] = (),
    source: str = "the schema",
) -> Preprocess:
    """Recipe that describes the columns as those of a log; the first column is the item.

    `source` names the origin of the columns in errors.
    """
    item, *features = columns
    described = [
        {
            "name": feature.name,
            "column": feature.raw,
            "kind": feature.kind,
            "of": "interaction" if feature.is_list else "session",
        }
        for feature in features
    ]
    values = {
        "session": session or SESSION,
        "item": item.raw,
        "features": described,
        "missing": list(missing),
        "max_sequence_length": length,
    }
    return Preprocess.from_dict(values, source)


def longest_list(files: Mapping[str, Sequence[Path]], item: ParquetColumn) -> int:
    """Number of interactions of the longest session."""
    lengths = [
        pc.max(
            pc.list_value_length(pq.read_table(path, columns=[item.source])[item.source])
        ).as_py()
        for paths in files.values()
        for path in paths
    ]
    return max(1, *(length or 0 for length in lengths))


@dataclass
class _Counter:
    """Counts of sessions read, sessions in no part, and interactions whose item is null."""

    read: int = 0
    left_out: int = 0
    null_items: int = 0


def _write_part(
    directory: Path, part: str, tables: SessionTables, counter: _Counter
) -> dict[str, Any]:
    writer = SessionWriter(directory / SESSIONS_DIRECTORY / part)
    item = tables.columns[0]
    num_sessions = num_interactions = 0
    for path in tables.files[part]:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=65_536):
            table = pa.Table.from_batches([batch])
            sessions = _sessions(table, path, tables)
            counter.read += len(sessions)
            counter.null_items += table[item.source].combine_chunks().flatten().null_count
            lengths = pc.list_value_length(sessions[ITEM]).to_numpy()
            kept = lengths > (1 if part == "train" else 0)
            counter.left_out += int((~kept).sum())
            sessions = sessions.filter(pa.array(kept))
            num_sessions += len(sessions)
            num_interactions += int(lengths[kept].sum())
            if len(sessions):
                writer.write(sessions)
    if not num_sessions:
        raise DataError(f"No session of the {part} files has the two interactions that it needs.")
    writer.close()
    return {"sessions": num_sessions, "interactions": num_interactions, "first": None, "last": None}


def _sessions(table: pa.Table, path: Path, tables: SessionTables) -> pa.Table:
    """Sessions with the names of a data directory, without padding, cut to the newest L + 1."""
    columns, session, fitted = tables.columns, tables.session, tables.fitted
    item = columns[0]
    lengths, offsets = _lengths(table[item.source].combine_chunks(), path, item.source)
    longest = fitted.recipe.max_sequence_length + 1
    kept = np.minimum(lengths, longest)
    new_offsets = np.concatenate([[0], np.cumsum(kept)])
    # positions of the kept values among all values
    within = np.arange(new_offsets[-1]) - np.repeat(new_offsets[:-1], kept)
    positions = np.repeat(offsets[:-1] + lengths - kept, kept) + within
    arrays: dict[str, Any] = {}
    if session is not None:
        kind = pa.int64() if fitted.session_type == "int64" else pa.string()
        arrays[SESSION] = table[session].combine_chunks().cast(kind)
    list_offsets = pa.array(new_offsets, pa.int32())
    for column in columns:
        values = table[column.source].combine_chunks()
        if column.is_list:
            flat = _flat_values(values, offsets, path, column)
            flat = flat.take(pa.array(positions))
        else:
            flat = values
        flat = _checked(flat, path, column, fitted)
        arrays[column.name] = (
            pa.ListArray.from_arrays(list_offsets, flat) if column.is_list else flat
        )
    order = pa.array(np.arange(new_offsets[-1]))  # the order replaces missing times
    arrays[TIMESTAMP] = pa.ListArray.from_arrays(list_offsets, order)
    return pa.table(arrays)


def _lengths(lists: pa.ListArray, path: Path, source: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """(sessions,) numbers of interactions, and (sessions + 1,) offsets with the padding."""
    if pa.types.is_fixed_size_list(lists.type):
        lists = lists.cast(pa.list_(lists.type.value_type))
    widths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(widths)])
    items = lists.flatten()
    present = pc.fill_null(items, NULL).to_numpy() != PADDING
    rows = np.repeat(np.arange(len(widths)), widths)
    lengths = np.bincount(rows[present], minlength=len(widths))
    after = np.arange(len(present)) - offsets[:-1][rows] >= lengths[rows]
    if bool((present & after).any()):
        raise DataError(
            f"{path}: {source!r} has the padding index 0 before other values. Sessions stand on "
            "the left, padding on the right."
        )
    return lengths, offsets


def _flat_values(
    lists: pa.Array, offsets: NDArray[Any], path: Path, column: ParquetColumn
) -> pa.Array:
    widths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    wrong = np.flatnonzero(widths != np.diff(offsets))
    if len(wrong):
        raise DataError(
            f"{path}: {column.source!r} has {widths[wrong[0]]} values where the items have "
            f"{np.diff(offsets)[wrong[0]]}. Each list of a session has one value per interaction."
        )
    return lists.flatten()


def _checked(values: pa.Array, path: Path, column: ParquetColumn, fitted: Fitted) -> pa.Array:
    """Indices as int64 within the table, or numbers as float32."""
    if not column.is_index:
        numbers = pc.fill_null(values.cast(pa.float32()), 0.0)
        numbers = pc.if_else(pc.is_nan(numbers), pa.scalar(0.0, pa.float32()), numbers)
        if pc.any(pc.is_inf(numbers)).as_py():
            raise DataError(f"{path}: {column.source!r} has infinite numbers. Leave them out.")
        return numbers
    vocabulary = fitted.vocabularies[column.name]
    if column.is_code:
        return encode(values, vocabulary)
    indices = pc.fill_null(values.cast(pa.int64()), NULL)
    num_rows = vocabulary.num_rows
    low, high = pc.min_max(indices).as_py().values()
    if low is not None and not 0 <= low <= high < num_rows:
        raise DataError(
            f"{path}: {column.source!r} has the indices {low} to {high}, expected 0 to "
            f"{num_rows - 1} by its domain."
        )
    return indices
