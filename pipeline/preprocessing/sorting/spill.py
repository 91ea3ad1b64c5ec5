"""Interactions on disk by session: logs of any size in, parts of whole sessions in order out.

An external sort. Each block of a log is sorted by session and written; a part takes from each
block the range of sessions that it is for. Bounds depend on the log alone, not on the machine.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.columns import SESSION, TIMESTAMP
from pipeline.data import values
from pipeline.data.fitted import ValueType
from pipeline.preprocessing.sorting.ordering import order_by, stable_order

PART_ROWS = 500_000
"""Interactions of a part, which are worked on at a time; more only where one session has more."""
_BATCH_ROWS = 1 << 15
"""Read from a block at a time."""
_STEP = 1 << 10
"""Rows between two keys of a block that stay in memory."""

Key = int | str
Bounds = tuple[Key | None, Key | None]
"""First session of a part and first one behind it; None for no bound."""


@dataclass
class _Block:
    path: Path
    rows: int
    type: ValueType
    """Of the session."""
    keys: Any
    """Every `_STEP`th session: int64 array, or list of text."""


@dataclass
class Spill:
    """Blocks of interactions, each sorted by session; a Dask worker can read them too."""

    directory: Path
    blocks: list[_Block] = field(default_factory=list)

    def add(self, number: int, table: pa.Table) -> _Block:
        """Write a block of canonical columns; may run beside others. Put it into `blocks`."""
        session = table[SESSION].combine_chunks()
        kind: ValueType = "int64" if pa.types.is_integer(session.type) else "string"
        order = _order(session)
        if order is not None:
            table = table.take(pa.array(order))
            session = table[SESSION].combine_chunks()
        path = self.directory / f"block-{number}.arrow"
        write(table, path)
        keys = session.take(pa.array(np.arange(0, len(session), _STEP)))
        listed = keys.to_numpy() if kind == "int64" else keys.to_pylist()
        return _Block(path, len(session), kind, listed)

    def settle(self, kind: ValueType) -> None:
        """Sort blocks anew whose sessions were integers, where others' were text."""
        for number, block in enumerate(self.blocks):
            if block.type != kind:
                table = read(block.path)
                text = values.as_type(table[SESSION].combine_chunks(), kind)
                at = table.column_names.index(SESSION)
                changed = self.add(number, table.set_column(at, SESSION, text))
                self.blocks[number] = changed

    @property
    def rows(self) -> int:
        """Interactions in all."""
        return sum(block.rows for block in self.blocks)

    def bounds(self, rows: int) -> list[Bounds]:
        """Of parts of about so many rows, by the order of sessions."""
        keys: list[Key] = sorted(key for block in self.blocks for key in _listed(block.keys))
        each = max(1, rows // _STEP)
        chosen = keys[each::each] if self.rows > rows else []
        # nothing is before the first, which is in all
        cuts = [key for key in dict.fromkeys(chosen) if key != keys[0]]
        return list(pairwise([None, *cuts, None]))

    def read(self, bounds: Bounds) -> Iterator[pa.Table]:
        """The interactions of a part, block after block as in the log, by session in each."""
        low, high = bounds
        for block in self.blocks:
            # the key before the bound is that of rows which may reach it
            first = 0 if low is None else max(0, bisect_left(block.keys, low) - 1)
            last = len(block.keys) if high is None else bisect_left(block.keys, high)
            if first < last:
                table = _read_rows(block.path, first * _STEP, min(last * _STEP, block.rows))
                begin, end = _position(table, low), _position(table, high)
                yield table.slice(
                    begin or 0, (table.num_rows if end is None else end) - (begin or 0)
                )


def sorted_part(
    spill: Spill, bounds: Bounds, kinds: dict[str, ValueType]
) -> tuple[pa.Table, np.ndarray]:
    """Interactions of a part by session and time, and where each session begins, (S,).

    Columns of ids have the types `kinds`. Equal times keep the order of the log.
    """
    tables = []
    for table in spill.read(bounds):
        for name, kind in kinds.items():
            column = table[name].combine_chunks()
            at = table.column_names.index(name)
            table = table.set_column(at, name, values.as_type(column, kind))
        tables.append(table)
    table = _one(tables)
    codes = _codes(table[SESSION].combine_chunks())
    order = order_by(codes, table[TIMESTAMP].to_numpy())
    starts = np.flatnonzero(np.diff(codes[order], prepend=codes[order[:1]] - 1))
    return table.take(pa.array(order)), starts


def write(table: pa.Table, path: Path) -> None:
    """As Arrow's file format, dictionaries included."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.unify_dictionaries(), max_chunksize=_BATCH_ROWS)


def read(path: Path) -> pa.Table:
    """A whole file. It is read, not mapped, so that it counts as memory when it is used."""
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _read_rows(path: Path, begin: int, end: int) -> pa.Table:
    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source)
        first, last = begin // _BATCH_ROWS, -(-end // _BATCH_ROWS)
        batches = [reader.get_batch(number) for number in range(first, last)]
        table = pa.Table.from_batches(batches, reader.schema)
    return table.slice(begin - first * _BATCH_ROWS, end - begin)


def _one(tables: list[pa.Table]) -> pa.Table:
    """Of one chunk a column. A dictionary in one and none in another become plain text."""
    for name in tables[0].column_names:
        if len({table.schema.field(name).type for table in tables}) > 1:
            for number, table in enumerate(tables):
                column = values.plain_text(table[name].combine_chunks())
                at = table.column_names.index(name)
                tables[number] = table.set_column(at, name, column)
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _order(session: pa.Array) -> np.ndarray | None:
    """Stable, by session; None where they are in order."""
    codes = _codes(session)
    if len(codes) < 2 or bool((codes[1:] >= codes[:-1]).all()):
        return None
    return stable_order(codes)


def _codes(session: pa.Array) -> np.ndarray:
    """Integers in the order of the sessions; text is in that of its code points."""
    if pa.types.is_integer(session.type):
        return session.to_numpy()
    encoded = session.dictionary_encode()
    rank = np.empty(len(encoded.dictionary), np.int64)
    rank[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(rank))
    return rank[encoded.indices.to_numpy()]


def _position(table: pa.Table, bound: Key | None) -> int | None:
    """Row of the first session that is not before `bound`."""
    if bound is None:
        return None
    session = table[SESSION]
    if pa.types.is_integer(session.type):
        return int(np.searchsorted(session.to_numpy(), bound))
    return int(pc.sum(pc.less(session, bound), min_count=0).as_py())


def _listed(keys: Any) -> list[Key]:
    return keys.tolist() if isinstance(keys, np.ndarray) else list(keys)
