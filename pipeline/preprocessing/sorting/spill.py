"""External sort of interactions by session and time.

Each block of the log is sorted by session and written to disk. A shard takes from each block the
range of sessions that it covers, and sorts it by session and time. The bounds of shards depend on
the log alone, not on the machine.
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
from numpy.typing import NDArray

from pipeline.core.columns import ORDER, SESSION, TIMESTAMP
from pipeline.data import values
from pipeline.data.fitted import ValueType
from pipeline.preprocessing.sorting.ordering import order_by, stable_order

SHARD_ROWS = 500_000
"""Maximum interactions of a shard, which is processed in memory; a longer session exceeds it."""
_BATCH_ROWS = 1 << 15
"""Rows of a record batch, the unit of reading from a block."""
_STEP = 1 << 10
"""Rows between the session ids of a block that are kept in memory as an index."""

Key = int | str
Bounds = tuple[Key | None, Key | None]
"""First session of a shard and first session after it; None for no bound."""


@dataclass
class SortedBlock:
    """A file of interactions sorted by session."""

    path: Path
    rows: int
    type: ValueType
    """Type of the session id."""
    keys: Any
    """Session id of every `_STEP`th row: int64 array, or list of text."""


@dataclass
class Spill:
    """Sorted blocks in a directory that all workers can read."""

    directory: Path
    blocks: list[SortedBlock] = field(default_factory=list)

    def write_block(self, number: int, table: pa.Table) -> SortedBlock:
        """Sort and write a block of canonical columns. Thread-safe: it does not add to `blocks`."""
        session = table[SESSION].combine_chunks()
        kind: ValueType = "int64" if pa.types.is_integer(session.type) else "string"
        order = _session_order(session)
        if order is not None:
            table = table.take(pa.array(order))
            session = table[SESSION].combine_chunks()
        path = self.directory / f"block-{number}.arrow"
        write(table, path)
        keys = sample_keys(session)
        return SortedBlock(
            path, len(session), kind, keys.to_numpy() if kind == "int64" else keys.to_pylist()
        )

    def unify_sessions(self, kind: ValueType) -> None:
        """Sort blocks of integer session ids again as text, if other blocks have text."""
        for number, block in enumerate(self.blocks):
            if block.type != kind:
                table = read(block.path)
                text = values.as_type(table[SESSION].combine_chunks(), kind)
                index = table.column_names.index(SESSION)
                self.blocks[number] = self.write_block(
                    number, table.set_column(index, SESSION, text)
                )

    @property
    def rows(self) -> int:
        """Interactions of all blocks."""
        return sum(block.rows for block in self.blocks)

    def bounds(self, rows: int | None = None) -> list[Bounds]:
        """Bounds of shards of about `rows` (SHARD_ROWS) interactions, ascending by session."""
        keys: list[Key] = sorted(
            key
            for block in self.blocks
            for key in (block.keys.tolist() if block.type == "int64" else block.keys)
        )
        cuts = cut_keys(keys, self.rows, rows)
        return list(pairwise([None, *cuts, None]))

    def read(self, bounds: Bounds) -> Iterator[pa.Table]:
        """Interactions of a shard, one table per block in the order of the log."""
        low, high = bounds
        for block in self.blocks:
            # rows after the last indexed key below `low` may already belong to `low`
            first = 0 if low is None else max(0, bisect_left(block.keys, low) - 1)
            last = len(block.keys) if high is None else bisect_left(block.keys, high)
            if first < last:
                table = _read_rows(block.path, first * _STEP, min(last * _STEP, block.rows))
                begin = 0 if low is None else _rows_before(table, low)
                end = table.num_rows if high is None else _rows_before(table, high)
                yield table.slice(begin, end - begin)


def sample_keys(keys: Any) -> Any:
    """Every `_STEP`th session id of a sorted block, as an array of Arrow, NumPy or CuPy."""
    return keys[::_STEP]


def cut_keys(keys: list[Any], num_rows: int, shard_rows: int | None = None) -> list[Any]:
    """First session of each shard after the first one, for shards of `shard_rows` interactions.

    `keys` are the `sample_keys` of all blocks, ascending; `shard_rows` defaults to SHARD_ROWS.
    """
    shard_rows = SHARD_ROWS if shard_rows is None else shard_rows
    step = max(1, shard_rows // _STEP)
    chosen = keys[step::step] if num_rows > shard_rows else []
    return [key for key in dict.fromkeys(chosen) if key != keys[0]]  # nothing is before keys[0]


def sorted_shard(
    spill: Spill, bounds: Bounds, types: dict[str, ValueType]
) -> tuple[pa.Table, NDArray[Any]]:
    """Interactions of a shard sorted by session and time, and the (S,) first row of each session.

    Id columns are converted to `types`. Interactions with equal times keep the order of the log.
    """
    tables = []
    for table in spill.read(bounds):
        for name, kind in types.items():
            column = table[name].combine_chunks()
            index = table.column_names.index(name)
            table = table.set_column(index, name, values.as_type(column, kind))
        tables.append(table)
    table = _concatenate(tables)
    codes = _session_codes(table[SESSION].combine_chunks())
    times = table[TIMESTAMP].to_numpy()
    further = [name for name in table.column_names if name.startswith(ORDER)]
    if further:
        keys = [table[name].to_numpy() for name in reversed(further)]  # NaN is last
        order = np.lexsort((*keys, times, codes))
        table = table.drop_columns(further)
    else:
        order = order_by(codes, times)
    starts = np.flatnonzero(np.diff(codes[order], prepend=codes[order[:1]] - 1))
    return table.take(pa.array(order)), starts


def write(table: pa.Table, path: Path) -> None:
    """Write an Arrow file; dictionaries are kept."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.unify_dictionaries(), max_chunksize=_BATCH_ROWS)


def read(path: Path) -> pa.Table:
    """Read a whole file into memory, without a memory map so that it counts as used memory."""
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _read_rows(path: Path, begin: int, end: int) -> pa.Table:
    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source)
        first, last = begin // _BATCH_ROWS, -(-end // _BATCH_ROWS)
        batches = [reader.get_batch(number) for number in range(first, last)]
        table = pa.Table.from_batches(batches, reader.schema)
    return table.slice(begin - first * _BATCH_ROWS, end - begin)


def _concatenate(tables: list[pa.Table]) -> pa.Table:
    """One table with one chunk per column; columns that are dictionaries in only some tables are
    decoded."""
    for name in tables[0].column_names:
        if len({table.schema.field(name).type for table in tables}) > 1:
            for number, table in enumerate(tables):
                column = values.decode_dictionary(table[name].combine_chunks())
                index = table.column_names.index(name)
                tables[number] = table.set_column(index, name, column)
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _session_order(session: pa.Array) -> NDArray[Any] | None:
    """Stable order by session; None if the sessions are already in order."""
    codes = _session_codes(session)
    if len(codes) < 2 or bool((codes[1:] >= codes[:-1]).all()):
        return None
    return stable_order(codes)


def _session_codes(session: pa.Array) -> NDArray[Any]:
    """(N,) integers in the order of the session ids; text sorts by code point."""
    if pa.types.is_integer(session.type):
        return session.to_numpy()
    encoded = session.dictionary_encode()
    rank = np.empty(len(encoded.dictionary), np.int64)
    rank[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(rank))
    return rank[encoded.indices.to_numpy()]


def _rows_before(table: pa.Table, bound: Key) -> int:
    """Number of rows whose session sorts before `bound`."""
    session = table[SESSION]
    if pa.types.is_integer(session.type):
        return int(np.searchsorted(session.to_numpy(), bound))
    return int(pc.sum(pc.less(session, bound), min_count=0).as_py())
