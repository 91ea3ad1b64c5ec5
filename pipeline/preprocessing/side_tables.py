"""Side tables: features of items, sessions or users in a table beside the log."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.core.columns import ITEM, SESSION
from pipeline.core.errors import DataError
from pipeline.data import values
from pipeline.logs.files import read_logs
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.lookup import positions
from pipeline.recipe.preprocess import Preprocess, Table

_KEY_COLUMN = {"item": ITEM, "session": SESSION}


class SideTables:
    """The side tables of a recipe in memory, by key as text.

    DataError if a table is missing, lacks a column or has no key. Rows that are dropped are
    counted in `report`.
    """

    def __init__(self, recipe: Preprocess, report: RowCounts) -> None:
        self._tables: dict[str, tuple[pa.Array, pa.Table]] = {}
        self._files: dict[str, str] = {}
        self._unmatched: dict[str, str | None] = {}
        """Tables without a matching key so far, each with an example id of the log."""
        for of, table in (("item", recipe.item_table), ("session", recipe.session_table)):
            if table is not None:
                self._tables[_KEY_COLUMN[of]] = _read_table(recipe, of, table, report)
                self._files[_KEY_COLUMN[of]] = table.file
                self._unmatched[_KEY_COLUMN[of]] = None

    def check_matched(self) -> None:
        """DataError if no row of the log has a key of a table."""
        for key_column, example in self._unmatched.items():
            if example is not None:
                keys, _ = self._tables[key_column]
                raise DataError(
                    f"{self._files[key_column]}: none of its {len(keys):,} keys, such as "
                    f"{keys[0].as_py()!r}, is a {key_column} of the log, such as {example!r}. "
                    "Write them alike, or correct `key`."
                )

    @property
    def items(self) -> pa.Table | None:
        """The item table with `item_id` as text and its columns as read; None without one."""
        if ITEM not in self._tables:
            return None
        keys, columns = self._tables[ITEM]
        return columns.add_column(0, ITEM, keys)

    def join(self, block: pa.Table) -> pa.Table:
        """Append the columns of the tables to a block; null for keys that a table lacks."""
        for key_column, (_, columns) in self._tables.items():
            indices = self._rows(key_column, block[key_column])
            for name in columns.column_names:
                block = block.append_column(name, columns[name].combine_chunks().take(indices))
        return block

    def values_of(self, key_column: str, name: str, keys: pa.Array) -> pa.Array:
        """Values of one column at the keys; null for keys that the table lacks."""
        column = self._tables[key_column][1][name].combine_chunks()
        return column.take(self._rows(key_column, pa.chunked_array([keys])))

    def _rows(self, key_column: str, keys: pa.ChunkedArray) -> pa.Array:
        """Row of each key, null for keys that the table lacks."""
        ids = _as_text(keys)
        row = positions(ids, self._tables[key_column][0])
        if (row >= 0).any():
            self._unmatched.pop(key_column, None)
        elif key_column in self._unmatched and len(ids.drop_null()):
            self._unmatched[key_column] = ids.drop_null()[0].as_py()
        return pa.array(row, mask=row < 0)


def _read_table(
    recipe: Preprocess, of: str, table: Table, report: RowCounts
) -> tuple[pa.Array, pa.Table]:
    """Unique keys of a table and the row of each; the first row of a key counts."""
    key = table.key or (recipe.item if of == "item" else recipe.session)
    features = recipe.table_features(of)
    fields = {"name", "column", "kind", "values_per_interaction", "separator"}
    reader = Preprocess.from_dict(
        {
            "session": key,
            "item": key,
            "features": [f.model_dump(include=fields) for f in features],
            "delimiter": table.delimiter,
        },
        f"{of}_table",
    )
    table_report = RowCounts()  # rows of the table are not rows of the log
    parts = read_logs(reader, [Path(table.file)], table_report)
    for reason, count in table_report.counts.items():
        report.warnings[f"{reason}, in {table.file}"] += count
    rows = pa.concat_tables(parts) if parts else pa.table({ITEM: pa.array([], pa.string())})
    keys = _as_text(rows[ITEM])
    numbers = np.arange(len(keys))[keys.is_valid().to_numpy(zero_copy_only=False)]
    encoded = keys.take(pa.array(numbers)).dictionary_encode()
    if not len(encoded):
        raise DataError(f"{table.file} has no row with a {key!r}. Check `{of}_table`.")
    first = np.full(len(encoded.dictionary), -1)
    first[encoded.indices.to_numpy()[::-1]] = numbers[::-1]  # the first row wins
    report.warnings[f"rows of {table.file} without a key, or with that of an earlier row"] += len(
        keys
    ) - len(first)
    return encoded.dictionary, rows.select([f.name for f in features]).take(pa.array(first))


def _as_text(column: pa.ChunkedArray) -> pa.Array:
    return values.decode_dictionary(values.category_chunk(values.to_array(column), "string")[0])
