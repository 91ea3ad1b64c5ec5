"""Tables of items and of sessions (or users) beside the log: features that it does not hold."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.core.columns import ITEM, SESSION
from pipeline.core.errors import DataError
from pipeline.data import values
from pipeline.logs.files import read_logs
from pipeline.logs.row_counts import Report
from pipeline.preprocessing.sorting.lookup import places
from pipeline.recipe.preprocess import Preprocess, Table

_OF = {"item": ITEM, "session": SESSION}


class Joined:
    """Tables that a recipe names, in memory, by the text of their keys."""

    def __init__(self, recipe: Preprocess, report: Report) -> None:
        """Read them. DataError for one that is missing, lacks a column or holds no key.

        `report` counts the rows that stand for nothing.
        """
        self._tables: dict[str, tuple[pa.Array, pa.Table]] = {}
        for of, table in (("item", recipe.item_table), ("session", recipe.session_table)):
            if table is not None:
                self._tables[_OF[of]] = _read(recipe, of, table, report)

    @property
    def of_items(self) -> pa.Table | None:
        """Of the item table, if there is one: `item_id` as text, and columns as they were read."""
        if ITEM not in self._tables:
            return None
        keys, found = self._tables[ITEM]
        return found.add_column(0, ITEM, keys)

    def add_to(self, block: pa.Table) -> pa.Table:
        """A block of the log in canonical columns, with those of the tables; missing for others."""
        for column, (keys, found) in self._tables.items():
            found_at = places(_text(block[column]), keys)
            place = pa.array(found_at, mask=found_at < 0)
            for name in found.column_names:
                block = block.append_column(name, found[name].combine_chunks().take(place))
        return block


def _read(recipe: Preprocess, of: str, table: Table, report: Report) -> tuple[pa.Array, pa.Table]:
    names = [f.name for f in recipe.features if f.table and f.of == of]
    key = table.key or (recipe.item if of == "item" else recipe.session)
    features = [
        f.model_dump(include={"name", "column", "kind", "values_per_interaction", "separator"})
        for f in recipe.features
        if f.name in names
    ]
    reader = Preprocess.from_dict(
        {"session": key, "item": key, "features": features, "delimiter": table.delimiter},
        f"{of}_table",
    )
    own = Report()
    parts = read_logs(reader, [Path(table.file)], own)
    for reason, count in own.counts.items():  # its rows are none of the log's
        report.counted[f"{reason}, in {table.file}"] += count
    found = pa.concat_tables(parts) if parts else pa.table({ITEM: pa.array([], pa.string())})
    keys = _text(found[ITEM])
    rows = np.arange(len(keys))[keys.is_valid().to_numpy(zero_copy_only=False)]
    encoded = keys.take(pa.array(rows)).dictionary_encode()
    if not len(encoded):
        raise DataError(f"{table.file} has no row with a {key!r}. Check `{of}_table`.")
    first = np.full(len(encoded.dictionary), -1)
    first[encoded.indices.to_numpy()[::-1]] = rows[::-1]  # of several the first one stays
    report.counted[f"rows of {table.file} without a key, or with that of an earlier row"] += len(
        keys
    ) - len(first)
    return encoded.dictionary, found.select(names).take(pa.array(first))


def _text(column: pa.ChunkedArray) -> pa.Array:
    return values.plain_text(values.category_chunk(values.plain(column), "string")[0])
