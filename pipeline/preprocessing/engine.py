"""A log of any size through sorting, learning and transforming, part by part.

Parts are whole sessions in the order of their ids; they are worked on in threads here, or by the
workers of a Dask cluster. What comes out depends on the log and the recipe alone.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
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
from pipeline.logs.row_counts import Report
from pipeline.preprocessing.computed import Computed
from pipeline.preprocessing.item_values import newest_of
from pipeline.preprocessing.report.counting import Counts, Window, count
from pipeline.preprocessing.sorting.cutting import reshaped, without_oldest
from pipeline.preprocessing.sorting.repeats import without_long, without_repeats
from pipeline.preprocessing.sorting.spill import PART_ROWS, Bounds, Spill, read, sorted_part, write
from pipeline.preprocessing.source import (
    Block,
    check_not_empty,
    common_types,
    raw_blocks,
    to_frame,
    typed_block,
)
from pipeline.preprocessing.split import rows_of
from pipeline.preprocessing.tables import Joined
from pipeline.recipe.preprocess import Preprocess

if TYPE_CHECKING:
    from pipeline.preprocessing.workflow import Statistics

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Part:
    """Whole sessions on disk, each interaction in its place."""

    path: Path
    lengths: np.ndarray
    """(S,) interactions of each session, in the order of their ids."""
    ends: np.ndarray
    """(S,) microseconds of the last of each."""
    first: int
    """Microseconds of the first of all."""
    report: Report
    """What was left out when it was sorted."""


@dataclass(frozen=True)
class Log:
    """All of a log, in parts."""

    parts: list[Part]
    types: dict[str, ValueType]
    timestamp_type: TimestampType | None
    report: Report
    rows: int
    """Interactions that were kept."""
    of_items: pa.Table | None
    """The item table beside it (`Joined.of_items`)."""


class Workers:
    """Something to be done for each of many, and the results in order, few of them at a time."""

    def __init__(self, submit: Callable[..., Any], count: int) -> None:
        self._submit = submit
        self._count = count

    def map(self, work: Callable[..., R], each: Iterable[tuple[Any, ...]]) -> Iterator[R]:
        """`work` with the arguments of each, results in their order."""
        waiting: deque[Any] = deque()
        for arguments in each:
            waiting.append(self._submit(work, *arguments))
            if len(waiting) > self._count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def workers(client: Any = None) -> Iterator[Workers]:
    """Threads of this process, as many as it may use cores, or those of a Dask `client`."""
    if client is not None:
        count = 2 * sum(client.nthreads().values())
        yield Workers(lambda work, *given: client.submit(work, *given, pure=False), count)
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
    """Read `files` as one log and sort it, below `directory`, which all workers see.

    `fitted_types`, where given, are those of categorical values; `operators` is the file of those
    that make features. DataError for a missing file, a
    missing column, an unreadable file or a log without a usable row.
    """
    report = Report()
    spill = Spill(directory)
    kinds = []
    joined, computed = Joined(recipe, report), Computed(recipe, operators, report)
    with workers() as here:  # a log is read where the command runs
        blocks = (
            (recipe, spill, number, computed.add_to(joined.add_to(table)), before, fitted_types)
            for number, (before, table) in enumerate(raw_blocks(recipe, files, report))
        )
        for block, written in here.map(_write_block, blocks):
            kinds.append((block.types, block.timestamp_type))
            report.add(block.report)
            spill.blocks.append(written)
    types, timestamp_type = common_types(recipe, kinds)
    check_not_empty(files, spill.rows, report)
    spill.settle(types[SESSION])
    spill.blocks = [block for block in spill.blocks if block.rows]
    bounds = spill.bounds(PART_ROWS)
    arguments = ((recipe, spill, number, part, types) for number, part in enumerate(bounds))
    parts = list(pool.map(_write_part, arguments))
    for written in spill.blocks:
        written.path.unlink()
    for part in parts:
        report.add(part.report)
    if recipe.session_gap is not None:
        types[SESSION] = "string"
    parts = [part for part in parts if len(part.lengths)]
    rows = sum(int(part.lengths.sum()) for part in parts)
    check_not_empty(files, rows, report)
    return Log(parts, types, timestamp_type, report, rows, joined.of_items)


def learn(
    recipe: Preprocess,
    log: Log,
    places: list[np.ndarray],
    pool: Workers,
    base: Fitted | None = None,
) -> tuple[Fitted, pa.Array]:
    """What is learned from the training sessions, beyond `base`, and all items of the log.

    `places` are the parts of the sessions (`split.split_sessions`), for each of the log's parts.
    """
    every: list[pa.Array] = []

    from pipeline.preprocessing import workflow

    def training() -> Iterator["Statistics"]:
        arguments = ((recipe, part, place) for part, place in zip(log.parts, places, strict=True))
        for found, items in pool.map(_statistics, arguments):
            if items is not None:
                every.append(items)
            yield found

    fitted = workflow.fit(recipe, training(), log.types, log.timestamp_type, base)
    return fitted, pc.unique(pa.chunked_array(every)) if every else pa.array([], pa.null())


def sessions_of(
    fitted: Fitted | Path,
    log: Log,
    places: list[np.ndarray] | None,
    name: str,
    pool: Workers,
    window: Window | None = None,
) -> Iterator[tuple[pa.Table, "Facts"]]:
    """Encoded sessions of the part `name`, in the order of their ids; without `places` all.

    `fitted` is what was learned, or the directory in which workers find it; `window` the hours
    that the report counts. Those of the log's parts that hold no session are passed over.
    """
    encoder = fitted if isinstance(fitted, Path) else _Encoder(fitted, name)
    arguments = (
        (encoder, part, None if places is None else places[number], name, window)
        for number, part in enumerate(log.parts)
    )
    yield from (found for found in pool.map(_transform, arguments) if found is not None)


@dataclass(frozen=True)
class Facts:
    """Of the interactions that became sessions."""

    items: dict[str, pa.Table]
    """Of training, the newest values of items (`item_values.newest_of`)."""
    interactions: int
    first: int
    """Microseconds."""
    last: int
    counts: Counts
    """For the report, of whole sessions."""


def _write_block(
    recipe: Preprocess,
    spill: Spill,
    number: int,
    table: pa.Table,
    before: int,
    fitted_types: dict[str, ValueType] | None,
) -> tuple[Block, Any]:
    block = typed_block(recipe, table, before, fitted_types)
    written = spill.add(number, block.table)
    empty = Block(block.table.slice(0, 0), block.types, block.timestamp_type, block.report)
    return empty, written


def _write_part(
    recipe: Preprocess, spill: Spill, number: int, bounds: Bounds, types: dict[str, ValueType]
) -> Part:
    report = Report()
    table, starts = sorted_part(spill, bounds, types)
    if recipe.timestamp is not None:
        table, starts = without_repeats(recipe, table, starts, report)
    table, starts = reshaped(recipe, table, starts, report)
    if recipe.longest_session is not None:
        table, starts = without_long(recipe.longest_session, table, starts, report)
    path = spill.directory / f"part-{number}.arrow"
    write(table, path)
    stops = np.append(starts[1:], table.num_rows)[: len(starts)]
    times = table[TIMESTAMP].to_numpy()
    first = int(times[starts].min()) if len(starts) else 0
    return Part(path, stops - starts, times[stops - 1], first, report)


def _statistics(
    recipe: Preprocess, part: Part, place: np.ndarray
) -> tuple["Statistics", pa.Array | None]:
    from pipeline.preprocessing import workflow

    table = read(part.path)
    items = pc.unique(table[ITEM].combine_chunks()).drop_null() if recipe.split.held_out else None
    if items is not None and pa.types.is_dictionary(items.type):
        items = items.dictionary_decode()
    rows = rows_of(recipe, place, part.lengths)["train"]
    if not rows.all():
        table = table.filter(pa.array(rows))
    return workflow.statistics(recipe, to_frame(table)), items


class _Encoder:
    """The workflow of one part of the sessions, for all threads that transform them."""

    def __init__(self, fitted: Fitted, name: str) -> None:
        from pipeline.preprocessing import workflow

        self.fitted = fitted
        self._transform = workflow.transform
        self._graph = workflow.rebuild(fitted, None, training=name == "train")
        self._check = workflow.output_schema
        self._lock = Lock()

    def encode(self, table: pa.Table) -> pa.Table:
        """Interactions to sessions."""
        frame = to_frame(table)
        with self._lock:  # the first one has the graph find its columns
            self._check(self._graph, frame)
        return as_table(self._transform(self._graph, frame))


def _transform(
    encoder: _Encoder | Path,
    part: Part,
    place: np.ndarray | None,
    name: str,
    window: Window | None,
) -> tuple[pa.Table, Facts] | None:
    if isinstance(encoder, Path):
        written = (encoder / FITTED_DIRECTORY / FITTED_FILE).stat().st_mtime_ns
        encoder = _encoder_in(encoder, written, name)
    fitted = encoder.fitted
    table = read(part.path)
    if place is not None:
        rows = rows_of(fitted.recipe, place, part.lengths)[name]
        if not rows.all():
            table = table.filter(pa.array(rows))
    if not table.num_rows:
        return None
    training = name == "train"
    times = table[TIMESTAMP].to_numpy()
    sessions = encoder.encode(table)
    newest = newest_of(fitted, table) if training else {}
    counts = count(fitted, table, sessions, name, window)
    facts = Facts(newest, len(times), int(times.min()), int(times.max()), counts)
    return without_oldest(sessions, _longest(fitted)) if training else sessions, facts


@contextmanager
def lazy_copies() -> Iterator[None]:
    """Have pandas copy what is written to, and not, as until version 3, what is passed on.

    Merlin's executor passes each column on several times. It is a setting of the whole process, so
    nothing may change it while threads work.
    """
    with pd.option_context("mode.copy_on_write", True):
        yield


@lru_cache(maxsize=1)
def _encoder_in(directory: Path, _written: int, name: str) -> _Encoder:
    """Read once for all parts by each worker, and anew when it was written anew."""
    return _Encoder(Fitted.read(directory), name)


def schema_of(fitted: Fitted, log: Log) -> Any:
    """Merlin's schema of the training sessions."""
    from pipeline.preprocessing import workflow

    frame = to_frame(read(log.parts[0].path).slice(0, 1))
    return workflow.output_schema(workflow.rebuild(fitted, _longest(fitted)), frame)


def _longest(fitted: Fitted) -> int:
    """Interactions that a training session keeps: those that the model reads, and a target."""
    return fitted.recipe.max_sequence_length + 1


def as_table(sessions: Any) -> pa.Table:
    """Arrow without pandas' notes: with those, pandas could not read its own list columns."""
    if isinstance(sessions, pd.DataFrame):
        table = pa.Table.from_pandas(sessions, preserve_index=False)
    else:
        table = sessions.to_arrow(preserve_index=False)
    names = [SESSION, *(name for name in table.column_names if name != SESSION)]
    return table.select(names).replace_schema_metadata(None)
