"""Formats of log files: CSV, JSON lines, Parquet and item sequences, read in blocks.

A block is a table of canonical columns.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

import pyarrow as pa

from pipeline.core.columns import ITEM, ORDER, SESSION, SPLIT, TIMESTAMP
from pipeline.core.errors import DataError
from pipeline.core.parquet_bounds import bounded_rows, open_parquet
from pipeline.logs.columns import canonical_table, folder_values, log_columns, recipe_names
from pipeline.logs.compression import inner_name
from pipeline.logs.csv_repair import CsvFile
from pipeline.logs.json_lines import Fields, JsonLines, flatten, object_lists
from pipeline.logs.row_counts import NO_UTF8, RowCounts
from pipeline.logs.text import TextFile, decode
from pipeline.recipe.preprocess import Preprocess

_LONGEST_SEQUENCE_BYTES = 1 << 28
_SUFFIXES = {
    **dict.fromkeys((".csv", ".tsv", ".txt", ".dat", ".inter", ".item", ".user"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}


_SEPARATORS = ("::", "\t", ";", "|", ",")
_NESTED = ("jsonl", "parquet")
_FEW_COLUMNS = 3
"""A header with fewer columns suggests a wrong delimiter."""


def format_of(recipe: Preprocess, file: Path) -> str:
    """Format of a log file: csv, jsonl, parquet or sequences.

    DataError if the file is missing or its name ends in no known suffix.
    """
    if not file.is_file():
        state = "is no file" if file.exists() else "does not exist"
        raise DataError(f"{file} {state}. Expected a log in CSV, TSV, JSON lines or Parquet.")
    if recipe.format != "auto":
        return recipe.format
    name = inner_name(file)
    for suffix, kind in _SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    raise DataError(
        f"{file}: cannot tell the format from the name. Expected .csv, .tsv, .txt, .dat, .inter, "
        ".jsonl or .parquet, the text ones also with .gz, .zst, .bz2, .xz or .zip; or set "
        "`format` in the recipe."
    )


def file_columns(recipe: Preprocess, file: Path) -> list[str]:
    """Column names of a file and of its folders; empty for an empty file.

    Columns of JSON lines are the fields of the first block.
    """
    names = _names_inside(recipe, file)
    return [*names, *(folder_values(recipe, file).keys() - names)] if names else []


def _names_inside(recipe: Preprocess, file: Path) -> list[str]:
    if format_of(recipe, file) in _NESTED:
        return _schema_names(recipe, _schema(recipe, file))
    csv = CsvFile(recipe, file, RowCounts())
    with closing(csv.blocks()) as blocks:
        next(blocks, None)
    return csv.names


def _schema(recipe: Preprocess, file: Path) -> pa.Schema:
    """Columns of a Parquet file, or of the first block of JSON lines; empty for an empty file."""
    if format_of(recipe, file) == "parquet":
        if not file.stat().st_size:
            return pa.schema([])
        with open_parquet(file) as parquet:
            return parquet.schema_arrow
    with closing(JsonLines(file, RowCounts(), _fields(recipe)).tables()) as tables:
        return next(tables, pa.table({})).schema


def check_columns(
    recipe: Preprocess, file: Path, names: list[str], columns: dict[str, str]
) -> None:
    """DataError unless each of `columns` occurs once among the `names` of the file's columns."""
    for name, column in columns.items():
        if names.count(column) > 1:
            raise DataError(
                f"{file} has {names.count(column)} columns named {column!r}. Name them apart."
            )
        if column not in names:
            feature = name.split(".")[0]  # inputs of a feature have its name and a dot
            role = feature if feature == column else f"{feature}, column {column!r}"
            keys = {SESSION: "session", ITEM: "item", TIMESTAMP: "timestamp.column"}
            keys[SPLIT] = "split.column"
            key = "order" if name.startswith(ORDER) else keys.get(name, "features")
            if recipe.session == recipe.item:  # a side table
                key = "key"
            raise DataError(
                f"{file} has no column for {role}. Found: {', '.join(map(repr, names))}. "
                f"{_advice(recipe, file, key, column, names)}"
            )


def _advice(recipe: Preprocess, file: Path, key: str, column: str, names: list[str]) -> str:
    """Advice on the recipe for a column that a file lacks."""
    if names[0].startswith("PAR1"):
        return "It is a Parquet file: set `format: parquet`."
    if names[0].startswith("{"):
        return "It holds JSON lines: set `format: jsonl`."
    if len(names) > 1 and all(name.startswith(" ") for name in names[1:]):
        return 'A blank follows each delimiter: set `delimiter: ", "`.'
    separators = [each for each in _SEPARATORS if any(each in name for name in names)]
    if separators and len(names) < _FEW_COLUMNS:
        return f"The columns look separated by {separators[0]!r}: set `delimiter` to that."
    if format_of(recipe, file) in _NESTED:
        lists = object_lists(_schema(recipe, file))
        if lists and recipe.explode not in lists:
            return f"For a row an object of the list {lists[0]!r}, set `explode: {lists[0]}`."
    lower = {name.lower(): name for name in names}
    advice = f"Correct `{key}` in the recipe"
    if closest := get_close_matches(column.lower(), lower, 1, cutoff=0.5):
        advice += f": the closest is {lower[closest[0]]!r}"
    return f"{advice}."


def scan_parquet(
    recipe: Preprocess, file: Path, row_counts: RowCounts, num_rows: int
) -> Iterator[pa.Table]:
    """Canonical columns of a Parquet file, in blocks of about `num_rows` rows."""
    if not file.stat().st_size:
        return
    with open_parquet(file) as parquet:
        if not parquet.metadata.num_rows:
            return
        names = _schema_names(recipe, parquet.schema_arrow)
        columns = _present_columns(recipe, file, names)
        selected = sorted(set(columns.values()).intersection(names))
        nested = recipe.explode is not None or not set(selected) <= set(parquet.schema_arrow.names)
        num_rows = bounded_rows(parquet, file, () if nested else selected, num_rows)
        for batch in parquet.iter_batches(
            batch_size=num_rows, columns=None if nested else selected
        ):
            table = pa.Table.from_batches([batch])
            if nested:
                table = flatten(table, recipe.explode, row_counts).rename_columns(names)
            table = _add_folder_values(recipe, file, table)
            table = canonical_table(recipe, table, str(file), row_counts)
            yield _add_missing(recipe, table, row_counts)


def _schema_names(recipe: Preprocess, schema: pa.Schema) -> list[str]:
    """Columns of a Parquet file as the recipe names them."""
    table = flatten(schema.empty_table(), recipe.explode, RowCounts())
    return recipe_names(recipe, table.column_names)


def scan_jsonl(
    recipe: Preprocess, file: Path, row_counts: RowCounts, num_rows: int
) -> Iterator[pa.Table]:
    """Canonical columns of JSON lines; a block has the types of its values."""
    has_lists: bool | None = None
    for raw in JsonLines(file, row_counts, _fields(recipe)).tables():
        if not raw.num_columns:  # no line holds an object
            continue
        is_first = has_lists is None
        raw = flatten(raw, None, row_counts)
        if is_first:
            has_lists = recipe.explode in raw.column_names
        elif has_lists and recipe.explode not in raw.column_names:
            raw = raw.append_column(recipe.explode, pa.nulls(raw.num_rows))
        table = flatten(raw, recipe.explode, row_counts)
        table = table.rename_columns(recipe_names(recipe, table.column_names))
        table = _add_folder_values(recipe, file, table)
        if is_first:
            _present_columns(recipe, file, table.column_names)
        for column in set(log_columns(recipe).values()) - set(table.column_names):
            table = table.append_column(column, pa.nulls(table.num_rows, pa.string()))
        table = canonical_table(recipe, table, str(file), row_counts)
        for at in range(0, max(table.num_rows, 1), num_rows):
            yield _add_missing(recipe, table.slice(at, num_rows), row_counts)


def _fields(recipe: Preprocess) -> Fields:
    """Fields of JSON that a recipe reads."""
    columns = set(log_columns(recipe).values())
    lists = {recipe.item, *(f.source for f in recipe.multi_valued_features)}
    if recipe.explode is not None:  # names of its fields may lack its own
        columns |= {f"{recipe.explode}.{name}" for name in columns}
        lists = {f"{recipe.explode}.{name}" for name in lists} | lists | {recipe.explode}
    return Fields(frozenset(columns), frozenset(lists))


def scan_csv(
    recipe: Preprocess, file: Path, row_counts: RowCounts, num_rows: int
) -> Iterator[pa.Table]:
    """Canonical columns of a CSV file as text, in blocks of about `num_rows` rows."""
    csv = CsvFile(recipe, file, row_counts)
    with closing(csv.blocks()) as blocks:
        first = next(blocks, None)
        if first is None:
            return
        columns = _present_columns(recipe, file, csv.names)
        selected = sorted(set(columns.values()).intersection(csv.names))
        tables = csv.tables(chain([first], blocks), selected)
        for part in _merge_small(tables, num_rows):
            table = _add_folder_values(recipe, file, part)
            renamed = pa.table({name: table[column] for name, column in columns.items()})
            yield _add_missing(recipe, renamed, row_counts)


def _present_columns(recipe: Preprocess, file: Path, names: list[str]) -> dict[str, str]:
    """Columns of the log by canonical name; those of features may be missing in the file."""
    required = {SESSION, ITEM, TIMESTAMP, SPLIT}
    columns = log_columns(recipe).items()
    required |= {name for name, _ in columns if name.startswith(ORDER)}
    names = [*names, *(folder_values(recipe, file).keys() - names)]
    present = {name: column for name, column in columns if name in required or column in names}
    check_columns(recipe, file, names, present)
    return present


def _add_folder_values(recipe: Preprocess, file: Path, table: pa.Table) -> pa.Table:
    """Columns that the folders name, as text; a column of the file comes first."""
    for name, value in folder_values(recipe, file).items():
        if name not in table.column_names:
            column = pa.repeat(pa.scalar(value, pa.string()), table.num_rows)
            table = table.append_column(name, column)
    return table


def _add_missing(recipe: Preprocess, table: pa.Table, row_counts: RowCounts) -> pa.Table:
    """Canonical columns in order, with nulls for features that the file lacks; counts the rows."""
    row_counts.rows += table.num_rows
    columns = log_columns(recipe)
    missing = {name: c for name, c in columns.items() if name not in table.column_names}
    for column in dict.fromkeys(missing.values()):
        row_counts.repaired[f"rows of files without the column {column}"] += table.num_rows
    nulls = pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    return pa.table({name: nulls if name in missing else table[name] for name in columns})


def _merge_small(tables: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """Concatenate tables until they have at least `num_rows` rows; the last may have fewer."""
    pending: list[pa.Table] = []
    size, is_first = 0, True
    for table in tables:
        pending.append(table)
        size += table.num_rows
        if size >= num_rows:
            yield pa.concat_tables(pending)
            pending, size, is_first = [], 0, False
    if size or (is_first and pending):
        yield pa.concat_tables(pending)


def scan_sequences(
    recipe: Preprocess, file: Path, row_counts: RowCounts, num_rows: int
) -> Iterator[pa.Table]:
    """Sessions and items of a file with one session per line, in blocks of about `num_rows`
    rows."""
    sessions: list[str] = []
    items: list[str] = []
    num_lines, has_yielded = 0, False
    text = TextFile(file, row_counts, _LONGEST_SEQUENCE_BYTES)
    for block in text.blocks():
        for line in block.splitlines():
            words = _words(line, row_counts)
            if not words:
                continue
            row_counts.lines += 1
            num_lines += 1
            # lines are numbered across files: names of files may repeat
            session = words.pop(0) if recipe.session_first else str(row_counts.lines)
            if not words:
                row_counts.warnings["lines without an item"] += 1
            sessions += [session] * len(words)
            items += words
            if len(items) >= num_rows:
                yield _sequence_table(sessions, items, row_counts)
                sessions, items, has_yielded = [], [], True
    lost = len(_words(text.cut_line, row_counts)[recipe.session_first :])
    row_counts.rows += lost
    row_counts.dropped["interactions of a line cut off with its file"] += lost
    too_long = f"lines longer than {_LONGEST_SEQUENCE_BYTES >> 20} MiB"
    row_counts.warnings[too_long] += text.long_lines
    if items or (num_lines and not has_yielded):
        yield _sequence_table(sessions, items, row_counts)


def _sequence_table(sessions: list[str], items: list[str], row_counts: RowCounts) -> pa.Table:
    row_counts.rows += len(items)
    return pa.table({SESSION: pa.array(sessions, pa.string()), ITEM: pa.array(items, pa.string())})


def _words(line: bytes, row_counts: RowCounts) -> list[str]:
    """Split at ASCII white space alone: other white space may be part of an id."""
    words = [decode(word) for word in line.split()]
    row_counts.repaired[NO_UTF8] += sum(is_repaired for _, is_repaired in words)
    return [text for text, _ in words]
