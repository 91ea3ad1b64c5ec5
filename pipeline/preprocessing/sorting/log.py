"""A whole log, read and sorted into shards of whole sessions.

Shards are ordered by session id. They are sorted by threads of this process or by the workers of a
Dask cluster; the result depends on log and recipe alone.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.core.columns import SESSION, SPLIT, TIMESTAMP
from pipeline.data.fitted import TimestampType, ValueType
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.blocks import (
    Block,
    check_not_empty,
    common_types,
    raw_blocks,
    typed_block,
)
from pipeline.preprocessing.cluster import Workers, workers
from pipeline.preprocessing.operator_features import OperatorFeatures
from pipeline.preprocessing.side_tables import SideTables
from pipeline.preprocessing.sorting.session_rules import apply_session_rules
from pipeline.preprocessing.sorting.spill import (
    Bounds,
    SortedBlock,
    Spill,
    read,
    sorted_shard,
    write,
)
from pipeline.preprocessing.split import split_keys
from pipeline.recipe.preprocess import Preprocess


@dataclass(frozen=True)
class Shard:
    """Whole sessions, sorted by session and time."""

    path: Path | None
    """Arrow file; None for a shard in the memory of a GPU."""
    lengths: NDArray[Any]
    """(S,) interactions of each session."""
    ends: NDArray[Any]
    """(S,) microseconds of the last interaction of each session."""
    begins: NDArray[Any]
    """(S,) microseconds of the first interaction of each session."""
    tied: int
    """Interactions whose time equals that of another one in their session."""
    report: RowCounts
    """Rows dropped by the session rules."""
    split_keys: NDArray[Any] | None
    """(S,) keys of `split.split_keys`, None if the split does not need them."""

    def session(self, number: int) -> int | str:
        """Id of a session."""
        assert self.path is not None  # noqa: S101
        row = int(self.lengths[:number].sum())
        session: int | str = read(self.path)[SESSION][row].as_py()
        return session


@dataclass(frozen=True)
class Log:
    """A whole log in shards."""

    shards: list[Shard]
    types: dict[str, ValueType]
    timestamp_type: TimestampType | None
    report: RowCounts
    rows: int
    """Interactions in all shards."""
    item_table: pa.Table | None
    """The item table beside the log (`SideTables.items`)."""

    @property
    def ends(self) -> NDArray[Any]:
        """(S,) microseconds of the last interaction of each session."""
        return np.concatenate([shard.ends for shard in self.shards])

    @property
    def split_keys(self) -> NDArray[Any] | None:
        """(S,) keys of all shards, None if the split does not need them."""
        keys = [shard.split_keys for shard in self.shards if shard.split_keys is not None]
        return np.concatenate(keys) if keys else None

    @property
    def first(self) -> int:
        """Microseconds of the first interaction."""
        return min(int(shard.begins.min()) for shard in self.shards)


def read_sorted(
    recipe: Preprocess,
    files: list[Path],
    directory: Path,
    pool: Workers,
    fitted_types: dict[str, ValueType] | None = None,
    operators: Path | None = None,
) -> Log:
    """Read `files` as one log and sort it into shards in `directory`, visible to all workers.

    `fitted_types` are the types of id columns in an earlier log, `operators` the Python file of the
    operator features. DataError for a missing or unreadable file, a missing column, or a log
    without a usable row.
    """
    report = RowCounts()
    spill = Spill(directory)
    block_types = []
    side_tables = SideTables(recipe, report)
    operator_features = OperatorFeatures(recipe, operators, report)
    with workers() as threads:  # the command reads the log, not the workers of a cluster
        blocks = (
            (recipe, spill, number, operator_features.add_to(side_tables.join(table)), before,
             fitted_types)
            for number, (before, table) in enumerate(raw_blocks(recipe, files, report))
        )  # fmt: skip
        for block, written in threads.map(_write_block, blocks):
            block_types.append((block.types, block.timestamp_type))
            report.add(block.report)
            spill.blocks.append(written)
    side_tables.check_matched()
    types, timestamp_type = common_types(recipe, block_types)
    check_not_empty(files, spill.rows, report)
    spill.unify_sessions(types[SESSION])
    spill.blocks = [block for block in spill.blocks if block.rows]
    bounds = spill.bounds()
    tasks = ((recipe, spill, number, part, types) for number, part in enumerate(bounds))
    shards = list(pool.map(_write_shard, tasks))
    for sorted_block in spill.blocks:
        sorted_block.path.unlink()
    for shard in shards:
        report.add(shard.report)
    if recipe.session_gap is not None:
        types[SESSION] = "string"
    shards = [shard for shard in shards if len(shard.lengths)]
    rows = sum(int(shard.lengths.sum()) for shard in shards)
    check_not_empty(files, rows, report)
    return Log(shards, types, timestamp_type, report, rows, side_tables.items)


def _write_block(
    recipe: Preprocess,
    spill: Spill,
    number: int,
    table: pa.Table,
    before: int,
    fitted_types: dict[str, ValueType] | None,
) -> tuple[Block, SortedBlock]:
    """Write a typed block; the returned `Block` has no rows, to free their memory."""
    block = typed_block(recipe, table, before, fitted_types)
    written = spill.write_block(number, block.table)
    return replace(block, table=block.table.slice(0, 0)), written


def _write_shard(
    recipe: Preprocess, spill: Spill, number: int, bounds: Bounds, types: dict[str, ValueType]
) -> Shard:
    report = RowCounts()
    table, starts = sorted_shard(spill, bounds, types)
    table, starts = apply_session_rules(recipe, table, starts, report)
    keys = split_keys(recipe, table, starts, report)
    if recipe.split_column is not None:
        table = table.drop_columns([SPLIT])
    path = spill.directory / f"shard-{number}.arrow"
    write(table, path)
    stops = np.append(starts[1:], table.num_rows)[: len(starts)]
    times = table[TIMESTAMP].to_numpy()
    same = times[1:] == times[:-1]
    same[starts[1:] - 1] = False
    tied = int(np.count_nonzero(np.append(same, False) | np.append(False, same)))
    return Shard(path, stops - starts, times[stops - 1], times[starts], tied, report, keys)
