"""Interactions of whole sessions on the device, and their tables on the host."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.core.columns import SESSION, TIMESTAMP
from pipeline.preprocessing.gpu.frames import Frames


@dataclass(frozen=True)
class Interactions:
    """Interactions of whole sessions, sorted by session and time."""

    frames: Frames
    session_ids: pa.Array
    """(S,) on the host."""
    lengths: NDArray[Any]
    """(S,) interactions of each session, on the host."""
    rows: Mapping[str, Any]
    """(N,) by column: int32 codes of ids and categories, -1 for null; numbers; microseconds."""
    dictionaries: Mapping[str, pa.Array]
    """Distinct values of each column of codes, on the host."""

    @classmethod
    def of_table(cls, frames: Frames, table: pa.Table, lengths: NDArray[Any]) -> Self:
        """Interactions of a shard of the CPU engine."""
        starts = np.cumsum(lengths) - lengths
        session_ids = table[SESSION].combine_chunks().take(pa.array(starts))
        rows: dict[str, Any] = {}
        dictionaries = {}
        for name in table.column_names:
            column = table[name].combine_chunks()
            if name == TIMESTAMP or pa.types.is_floating(column.type):
                rows[name] = frames.arrays.asarray(column.to_numpy(zero_copy_only=False))
            elif pa.types.is_dictionary(column.type):
                rows[name] = frames.arrays.asarray(pc.fill_null(column.indices, -1).to_numpy())
                dictionaries[name] = column.dictionary
            elif name != SESSION:
                codes, distinct = frames.series(column).factorize()
                rows[name] = frames.arrays.asarray(codes).astype(np.int32)
                dictionaries[name] = frames.arrow(distinct)
        return cls(frames, session_ids, lengths, rows, dictionaries)

    @property
    def num_rows(self) -> int:
        """N: number of interactions."""
        return int(self.lengths.sum())

    @property
    def session_numbers(self) -> NDArray[Any]:
        """(N,) position of the session of each row."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def slice(self, low: int, high: int) -> Self:
        """Sessions from position `low` up to `high`, without a copy."""
        stops = np.append(0, np.cumsum(self.lengths))
        rows = slice(int(stops[low]), int(stops[high]))
        return replace(
            self,
            session_ids=self.session_ids[low:high],
            lengths=self.lengths[low:high],
            rows={name: column[rows] for name, column in self.rows.items()},
        )

    def select(self, mask: NDArray[Any]) -> Self:
        """Interactions of a (N,) mask; sessions without any are left out."""
        if mask.all():
            return self
        starts = np.cumsum(self.lengths) - self.lengths
        lengths = np.add.reduceat(mask, starts, dtype=np.int64)
        on_device = self.frames.arrays.asarray(mask)
        return replace(
            self,
            session_ids=self.session_ids.filter(pa.array(lengths > 0)),
            lengths=lengths[lengths > 0],
            rows={name: column[on_device] for name, column in self.rows.items()},
        )

    def sorted_by_id(self) -> Self:
        """Sort sessions by id as text: `session_gap` appends numbers without leading zeros."""
        order = pc.sort_indices(self.session_ids).to_numpy()
        if (order[1:] > order[:-1]).all():
            return self
        lengths = self.lengths[order]
        starts = (np.cumsum(self.lengths) - self.lengths)[order]
        row = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        row = self.frames.arrays.asarray(row + np.arange(len(row)))
        return replace(
            self,
            session_ids=self.session_ids.take(pa.array(order)),
            lengths=lengths,
            rows={name: column[row] for name, column in self.rows.items()},
        )

    def table(self, names: Collection[str]) -> pa.Table:
        """Columns on the host in the form of the CPU engine; SESSION is the id of each row."""
        columns = {name: self.rows[name] for name in names if name != SESSION}
        on_host = host_columns(self.frames, columns, self.dictionaries)
        if SESSION in names:
            on_host[SESSION] = self.session_ids.take(pa.array(self.session_numbers))
        return pa.table(on_host)

    def first_row(self) -> pa.Table:
        """The first interaction, with all columns, on the host."""
        mask = np.zeros(self.num_rows, np.bool_)
        mask[0] = True
        return self.select(mask).table([SESSION, *self.rows])


def host_columns(
    frames: Frames, rows: Mapping[str, Any], dictionaries: Mapping[str, pa.Array]
) -> dict[str, pa.Array]:
    """Arrays of the device as Arrow columns: text as dictionaries, all others as values."""
    columns: dict[str, pa.Array] = {}
    for name, array in rows.items():
        on_host = frames.host(array)
        if name in dictionaries:
            indices = pa.array(on_host, mask=on_host < 0)
            column = pa.DictionaryArray.from_arrays(indices, dictionaries[name])
            is_text = pa.types.is_string(dictionaries[name].type)
            columns[name] = column if is_text else column.dictionary_decode()
        else:
            columns[name] = pa.array(on_host)
    return columns
