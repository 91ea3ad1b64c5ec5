"""Sorting, fitting and transforming a log of any size, shard by shard.

A shard holds whole sessions; shards are ordered by session id. They are processed by threads of
this process or by the workers of a Dask cluster. The results depend on log and recipe alone.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.columns import FITTED_DIRECTORY, FITTED_FILE, ITEM, SESSION, TIMESTAMP
from pipeline.data.fitted import Fitted, TimestampType, ValueType
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.blocks import (
    Block,
    check_not_empty,
    common_types,
    raw_blocks,
    to_frame,
    typed_block,
)
from pipeline.preprocessing.item_values import newest_values
from pipeline.preprocessing.operator_features import OperatorFeatures
from pipeline.preprocessing.report.counts import Counts, Window, count_sessions
from pipeline.preprocessing.side_tables import SideTables
from pipeline.preprocessing.sorting.session_rules import apply_session_rules, keep_newest
from pipeline.preprocessing.sorting.spill import (
    SHARD_ROWS,
    Bounds,
    SortedBlock,
    Spill,
    read,
    sorted_shard,
    write,
)
from pipeline.preprocessing.split import rows_of
from pipeline.recipe.preprocess import Preprocess

if TYPE_CHECKING:  # NVTabular is imported while the log is read
    from pipeline.preprocessing.workflow import Statistics

R = TypeVar("R")


@dataclass(frozen=True)
class Shard:
    """Whole sessions on disk, sorted by session and time."""

    path: Path
    lengths: np.ndarray
    """(S,) interactions of each session."""
    ends: np.ndarray
    """(S,) microseconds of the last interaction of each session."""
    first: int
    """Microseconds of the first interaction."""
    report: RowCounts
    """Rows dropped by the session rules."""


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
    def ends(self) -> np.ndarray:
        """(S,) microseconds of the last interaction of each session."""
        return np.concatenate([shard.ends for shard in self.shards])

    @property
    def first(self) -> int:
        """Microseconds of the first interaction."""
        return min(shard.first for shard in self.shards)


class Workers:
    """Runs tasks in parallel, a few at a time, and yields their results in order."""

    def __init__(self, submit: Callable[..., Any], max_pending: int) -> None:
        self._submit = submit
        self._max_pending = max_pending

    def map(self, task: Callable[..., R], arguments: Iterable[tuple[Any, ...]]) -> Iterator[R]:
        """Yield `task(*each)` for each of the arguments, in their order."""
        pending: deque[Any] = deque()
        for each in arguments:
            pending.append(self._submit(task, *each))
            if len(pending) > self._max_pending:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextmanager
def workers(client: Any = None) -> Iterator[Workers]:
    """The workers of a Dask `client`, or a thread for each core that this process may use."""
    if client is not None:
        max_pending = 2 * sum(client.nthreads().values())
        yield Workers(lambda task, *each: client.submit(task, *each, pure=False), max_pending)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores or 1) as pool:
        yield Workers(pool.submit, cores or 1)


def read_sorted(
    recipe: Preprocess,
    files: list[Path],
    directory: Path,
    pool: Workers,
    fitted_types: dict[str, ValueType] | None = None,
    operators: Path | None = None,
) -> Log:
    """Read `files` as one log and sort it into shards below `directory`, which all workers see.

    `fitted_types` are the types of id columns in an earlier log, `operators` the Python file of the
    operator features. DataError for a missing or unreadable file, a missing column, or a log
    without a usable row.
    """
    report = RowCounts()
    spill = Spill(directory)
    block_types = []
    side_tables = SideTables(recipe, report)
    operator_features = OperatorFeatures(recipe, operators, report)
    with workers() as threads:  # the log is read where the command runs
        blocks = (
            (recipe, spill, number, operator_features.add_to(side_tables.join(table)), before,
             fitted_types)
            for number, (before, table) in enumerate(raw_blocks(recipe, files, report))
        )  # fmt: skip
        for block, written in threads.map(_write_block, blocks):
            block_types.append((block.types, block.timestamp_type))
            report.add(block.report)
            spill.blocks.append(written)
    types, timestamp_type = common_types(recipe, block_types)
    check_not_empty(files, spill.rows, report)
    spill.unify_sessions(types[SESSION])
    spill.blocks = [block for block in spill.blocks if block.rows]
    bounds = spill.bounds(SHARD_ROWS)
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
    path = spill.directory / f"shard-{number}.arrow"
    write(table, path)
    stops = np.append(starts[1:], table.num_rows)[: len(starts)]
    times = table[TIMESTAMP].to_numpy()
    first = int(times[starts].min()) if len(starts) else 0
    return Shard(path, stops - starts, times[stops - 1], first, report)


def fit(
    recipe: Preprocess,
    log: Log,
    splits: list[np.ndarray],
    pool: Workers,
    base: Fitted | None = None,
) -> Fitted:
    """Fitted state of the training sessions, continuing that of `base`.

    `splits` are the part numbers of `split.split_sessions` for each shard. If the last interactions
    are held out, the catalogue has the items of all interactions.
    """
    from pipeline.preprocessing import workflow

    items: list[pa.Array] = []

    def statistics() -> Iterator["Statistics"]:
        tasks = ((recipe, shard, split) for shard, split in zip(log.shards, splits, strict=True))
        for of_shard, shard_items in pool.map(_statistics, tasks):
            if shard_items is not None:
                items.append(shard_items)
            yield of_shard

    fitted = workflow.fit(recipe, statistics(), log.types, log.timestamp_type, base)
    if items:
        fitted = workflow.with_items(fitted, pc.unique(pa.chunked_array(items)))
    return fitted


def _statistics(
    recipe: Preprocess, shard: Shard, split: np.ndarray
) -> tuple["Statistics", pa.Array | None]:
    """Statistics of the training interactions, and all items if the last ones are held out."""
    from pipeline.preprocessing import workflow

    table = read(shard.path)
    items = pc.unique(table[ITEM].combine_chunks()).drop_null() if recipe.split.held_out else None
    if items is not None and pa.types.is_dictionary(items.type):
        items = items.dictionary_decode()
    rows = rows_of(recipe, split, shard.lengths)["train"]
    if not rows.all():
        table = table.filter(pa.array(rows))
    return workflow.statistics(recipe, to_frame(table)), items


@dataclass(frozen=True)
class EncodedSessions:
    """Sessions of one part and one shard."""

    table: pa.Table
    """One row a session, sorted by id."""
    item_values: dict[str, pa.Table]
    """Newest values of items in training (`item_values.newest_values`)."""
    interactions: int
    first: int
    """Microseconds."""
    last: int
    counts: Counts
    """Counts of the data report, of whole sessions."""


def sessions_of(
    fitted: Fitted | Path,
    log: Log,
    splits: list[np.ndarray] | None,
    part: str,
    pool: Workers,
    window: Window | None = None,
) -> Iterator[EncodedSessions]:
    """Encoded sessions of a part, sorted by id; all sessions of the log without `splits`.

    `fitted` is the fitted state, or the directory from which workers read it. `window` are the
    hours that the data report counts. Shards without a session of the part yield nothing.
    """
    encoder = fitted if isinstance(fitted, Path) else _Encoder(fitted, part)
    tasks = (
        (encoder, shard, None if splits is None else splits[number], part, window)
        for number, shard in enumerate(log.shards)
    )
    yield from (sessions for sessions in pool.map(_encode, tasks) if sessions is not None)


class _Encoder:
    """The workflow of one part, shared by the threads that transform its shards."""

    def __init__(self, fitted: Fitted, part: str) -> None:
        from pipeline.preprocessing import workflow

        self.fitted = fitted
        self._workflow = workflow
        self._graph = workflow.rebuild(fitted, None, training=part == "train")
        self._lock = Lock()

    def encode(self, table: pa.Table) -> pa.Table:
        """Interactions to sessions."""
        frame = to_frame(table)
        with self._lock:  # the first call fits the schema of the graph
            self._workflow.output_schema(self._graph, frame)
        return as_table(self._workflow.transform(self._graph, frame))


@lru_cache(maxsize=1)
def _cached_encoder(directory: Path, _modified_ns: int, part: str) -> _Encoder:
    """Encoder of a worker process, kept for all shards of a part."""
    return _Encoder(Fitted.read(directory), part)


def _encode(
    encoder: _Encoder | Path,
    shard: Shard,
    split: np.ndarray | None,
    part: str,
    window: Window | None,
) -> EncodedSessions | None:
    if isinstance(encoder, Path):
        modified_ns = (encoder / FITTED_DIRECTORY / FITTED_FILE).stat().st_mtime_ns
        encoder = _cached_encoder(encoder, modified_ns, part)
    fitted = encoder.fitted
    table = read(shard.path)
    if split is not None:
        rows = rows_of(fitted.recipe, split, shard.lengths)[part]
        if not rows.all():
            table = table.filter(pa.array(rows))
    if not table.num_rows:
        return None
    times = table[TIMESTAMP].to_numpy()
    sessions = encoder.encode(table)
    is_training = part == "train"
    return EncodedSessions(
        table=keep_newest(sessions, _max_training_length(fitted)) if is_training else sessions,
        item_values=newest_values(fitted, table) if is_training else {},
        interactions=len(times),
        first=int(times.min()),
        last=int(times.max()),
        counts=count_sessions(fitted, table, sessions, part, window),
    )


def schema_of(fitted: Fitted, log: Log) -> Any:
    """Merlin's schema of the training sessions."""
    from pipeline.preprocessing import workflow

    frame = to_frame(read(log.shards[0].path).slice(0, 1))
    return workflow.output_schema(workflow.rebuild(fitted, _max_training_length(fitted)), frame)


def _max_training_length(fitted: Fitted) -> int:
    """Interactions of a training session: those that the model reads, and a target."""
    return fitted.recipe.max_sequence_length + 1


@contextmanager
def copy_on_write() -> Iterator[None]:
    """Have pandas copy columns when they are written to, as pandas 3 does.

    Merlin's executor passes each column on several times. The option is global to the process, so
    that it must not change while threads work.
    """
    with pd.option_context("mode.copy_on_write", True):
        yield


def as_table(sessions: Any) -> pa.Table:
    """Sessions as Arrow table, without pandas' metadata, with which pandas cannot read its own
    list columns."""
    if isinstance(sessions, pd.DataFrame):
        table = pa.Table.from_pandas(sessions, preserve_index=False)
    else:
        table = sessions.to_arrow(preserve_index=False)
    names = [SESSION, *(name for name in table.column_names if name != SESSION)]
    return table.select(names).replace_schema_metadata(None)
