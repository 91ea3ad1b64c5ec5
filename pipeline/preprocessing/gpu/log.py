"""A clean log, read, sorted and cut into shards in the memory of the device.

The result is that of `sorting.log.read_sorted`: the same shards, and the same counts of rows.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.data.fitted import ValueType
from pipeline.data.times import NO_TIME
from pipeline.data.values import UNKNOWN_INTEGER
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.blocks import NO_USABLE_TIME, check_not_empty
from pipeline.preprocessing.gpu.columns import ColumnTypes, TypedLog
from pipeline.preprocessing.gpu.frames import Frames
from pipeline.preprocessing.gpu.interactions import Interactions, host_columns
from pipeline.preprocessing.gpu.reading import check_recipe, read_clean
from pipeline.preprocessing.side_tables import SideTables
from pipeline.preprocessing.sorting.log import Log, Shard
from pipeline.preprocessing.sorting.session_rules import duplicate_rows
from pipeline.preprocessing.sorting.spill import cut_keys, sample_keys
from pipeline.recipe.durations import duration_microseconds
from pipeline.recipe.preprocess import Preprocess

_KEY, _NUMBER = "#key", "#number"
"""Internal columns: rank of the session id, and number of the session within its id."""


@dataclass(frozen=True)
class DeviceShard(Shard):
    """A shard in the memory of the device."""

    interactions: Interactions

    def session(self, number: int) -> int | str:
        """Id of a session."""
        session: int | str = self.interactions.session_ids[number].as_py()
        return session


def read_on_device(
    frames: Frames,
    recipe: Preprocess,
    files: list[Path],
    fitted_types: dict[str, ValueType] | None = None,
) -> Log:
    """Read `files` as one log and sort it on the device.

    Arguments and errors are those of `sorting.log.read_sorted`. NotOnDeviceError for a log that
    the CPU engine has to read.
    """
    check_recipe(recipe)
    report = RowCounts()
    side_tables = SideTables(recipe, report)
    raw = read_clean(frames, recipe, files)
    report.rows += len(raw.frame)
    log = ColumnTypes(frames, recipe, raw, side_tables, report).convert(fitted_types or {})
    side_tables.check_matched()
    block_rows = raw.block_rows
    del raw  # its text is not needed for the sort
    sorter = _Sorter(frames, recipe, log, report)
    sorter.drop_unusable(block_rows)
    check_not_empty(files, sorter.num_rows, report)
    cuts = sorter.sort()
    sorter.apply_session_rules()
    check_not_empty(files, sorter.num_rows, report)
    types = dict(log.types)
    if recipe.session_gap is not None:
        types[SESSION] = "string"
    shards = sorter.shards(cuts)
    return Log(shards, types, log.timestamp_type, report, sorter.num_rows, side_tables.items)


class _Sorter:
    """Sorts the rows of a log on the device by session and time, and applies the session rules."""

    def __init__(
        self, frames: Frames, recipe: Preprocess, log: TypedLog, report: RowCounts
    ) -> None:
        self._frames = frames
        self._arrays = frames.arrays
        self._recipe = recipe
        self._rows = log.rows
        self._dictionaries = log.dictionaries
        self._report = report
        self._block_rows: list[int] = []

    @property
    def num_rows(self) -> int:
        """Number of remaining rows."""
        return len(self._rows[TIMESTAMP])

    def drop_unusable(self, block_rows: list[int]) -> None:
        """Drop rows without a session or a time, and those outside the bounds of the recipe."""
        timestamp, times = self._recipe.timestamp, self._rows[TIMESTAMP]
        masks = {"rows without a session id": self._rows[SESSION] >= 0}
        if timestamp is not None:
            masks[NO_USABLE_TIME] = times != NO_TIME
            first, last = timestamp.bounds
            if first is not None:
                masks[f"rows before {timestamp.earliest}"] = times >= first
            if last is not None:
                masks[f"rows after {timestamp.latest}"] = times <= last
        is_kept = self._arrays.ones(len(times), bool)
        for reason, mask in masks.items():
            self._report.dropped[reason] += int((is_kept & ~mask).sum())
            is_kept &= mask
        last_rows = self._arrays.asarray(np.cumsum(block_rows) - 1)
        num_kept = self._frames.host(self._count(is_kept)[last_rows])
        self._block_rows = np.diff(num_kept, prepend=0).tolist()
        self._keep(is_kept)

    def sort(self) -> list[int]:
        """Sort by session and time; returns the first key of each shard but the first."""
        sessions = self._dictionaries[SESSION]
        order = self._arrays.asarray(self._frames.series(sessions).argsort().values)
        rank = self._arrays.empty(len(sessions), np.int64)
        rank[order] = self._arrays.arange(len(sessions))
        keys = rank[self._rows[SESSION]]
        stops = np.cumsum(self._block_rows)
        sampled = [
            self._frames.host(sample_keys(self._arrays.sort(keys[stop - size : stop])))
            for stop, size in zip(stops.tolist(), self._block_rows, strict=True)
        ]
        self._rows[_KEY] = keys
        row = self._frames.order_by(keys, self._rows[TIMESTAMP])
        self._rows = {name: column[row] for name, column in self._rows.items()}
        return cut_keys(sorted(np.concatenate(sampled).tolist()), self.num_rows)

    def apply_session_rules(self) -> None:
        """Apply the rules of `session_rules.apply_session_rules`."""
        recipe = self._recipe
        if recipe.timestamp is not None:
            self._drop_duplicates()
        if recipe.session_gap is not None:
            self._cut_at_gaps(duration_microseconds(recipe.session_gap))
        if recipe.drop_repeats:
            self._drop_repeats()
        if recipe.longest_session is not None:
            self._drop_overlong(recipe.longest_session)

    def _drop_duplicates(self) -> None:
        rows = self._arrays.flatnonzero(self._has_tie())
        if not len(rows):
            return
        names = [ITEM, *(f.name for f in self._recipe.scalar_features)]
        names += [f.target_column for f in self._recipe.target_encoded_features]
        taken = {name: self._rows[name][rows] for name in (TIMESTAMP, *names)}
        table = pa.table(host_columns(self._frames, taken, self._dictionaries))
        starts = np.flatnonzero(~self._frames.host(self._is_tied()[rows]))
        duplicates = duplicate_rows(self._recipe, table, starts)
        if not len(duplicates):
            return
        if self._recipe.duplicates == "keep":
            self._report.warnings["duplicated rows, kept"] += len(duplicates)
            return
        is_kept = self._arrays.ones(self.num_rows, bool)
        is_kept[rows[self._arrays.asarray(duplicates)]] = False
        self._drop(is_kept, "duplicated rows, dropped")

    def _cut_at_gaps(self, gap: int) -> None:
        is_first_of_id = self._is_start()
        is_start = is_first_of_id.copy()
        is_start[1:] |= self._arrays.diff(self._rows[TIMESTAMP]) > gap
        number = self._count(is_start)
        self._rows[_NUMBER] = number - number[is_first_of_id][self._count(is_first_of_id) - 1]

    def _drop_repeats(self) -> None:
        codes = self._rows[ITEM]
        repeated = ~self._is_start()
        repeated[1:] &= codes[1:] == codes[:-1]
        repeated &= codes >= 0
        items = self._dictionaries[ITEM]
        if pa.types.is_integer(items.type):  # the placeholder of text is not an item
            placeholder = pc.index(items, UNKNOWN_INTEGER).as_py()
            repeated &= codes != placeholder
        self._drop(~repeated, "rows with the item of the one before")

    def _drop_overlong(self, longest: int) -> None:
        session = self._count(self._is_start()) - 1
        is_long = self._arrays.bincount(session) > longest
        self._report.warnings[f"sessions longer than {longest}"] += int(is_long.sum())
        self._drop(~is_long[session], f"rows of sessions longer than {longest}")

    def shards(self, cuts: list[int]) -> list[Shard]:
        """Shards of whole sessions that begin at the keys `cuts`."""
        starts = self._arrays.flatnonzero(self._is_start())
        keys, codes, times = (self._rows[name][starts] for name in (_KEY, SESSION, TIMESTAMP))
        ids = self._dictionaries[SESSION].take(pa.array(self._frames.host(codes)))
        if _NUMBER in self._rows:
            numbers = pa.array(self._frames.host(self._rows[_NUMBER][starts])).cast(pa.string())
            ids = pc.binary_join_element_wise(ids.cast(pa.string()), numbers, "-")
        first_sessions = self._frames.host(
            self._arrays.searchsorted(keys, self._arrays.asarray(np.array(cuts, np.int64)))
        )
        starts_on_host = self._frames.host(starts)
        lengths = np.diff(starts_on_host, append=self.num_rows)
        tied = self._frames.host(self._has_tie()).astype(np.int64)
        last_rows = self._arrays.asarray(np.cumsum(lengths) - 1)
        begins, ends = self._frames.host(times), self._frames.host(self._rows[TIMESTAMP][last_rows])
        left_out = (_KEY, _NUMBER, SESSION)
        rows = {name: column for name, column in self._rows.items() if name not in left_out}
        log = Interactions(self._frames, ids, lengths, rows, self._dictionaries)
        return [
            DeviceShard(
                path=None,
                lengths=lengths[low:high],
                ends=ends[low:high],
                begins=begins[low:high],
                tied=int(np.add.reduceat(tied, starts_on_host)[low:high].sum()),
                report=RowCounts(),
                split_keys=None,
                interactions=log.slice(low, high),
            )
            for low, high in pairwise([0, *first_sessions.tolist(), len(lengths)])
            if low < high
        ]

    def _is_tied(self) -> Any:
        """(N,) bool: whether a row has the time of the row before it in its session."""
        times = self._rows[TIMESTAMP]
        tied = ~self._is_start()
        tied[1:] &= times[1:] == times[:-1]
        return tied

    def _has_tie(self) -> Any:
        """(N,) bool: whether a row has the time of a neighbour in its session."""
        tied = self._is_tied()
        has_tie = tied.copy()  # CuPy must not read and write overlapping slices
        has_tie[:-1] |= tied[1:]
        return has_tie

    def _is_start(self) -> Any:
        """(N,) bool: whether a row is the first of its session."""
        is_start = self._arrays.ones(self.num_rows, bool)
        keys, number = self._rows[_KEY], self._rows.get(_NUMBER)
        is_start[1:] = keys[1:] != keys[:-1]
        if number is not None:
            is_start[1:] |= number[1:] != number[:-1]
        return is_start

    def _count(self, mask: Any) -> Any:
        """(N,) number of True up to and including each row."""
        return self._arrays.cumsum(mask, dtype=np.int64)

    def _drop(self, is_kept: Any, reason: str) -> None:
        self._report.dropped[reason] += int((~is_kept).sum())
        self._keep(is_kept)

    def _keep(self, is_kept: Any) -> None:
        if not bool(is_kept.all()):
            self._rows = {name: column[is_kept] for name, column in self._rows.items()}
