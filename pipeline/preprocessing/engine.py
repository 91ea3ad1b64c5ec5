"""Fitting and transforming a log of any size, shard by shard.

Shards are processed by threads of this process or by the workers of a Dask cluster. The results
depend on the log and the recipe alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.core.columns import FITTED_DIRECTORY, FITTED_FILE, ITEM, SESSION, TIMESTAMP
from pipeline.data.fitted import Fitted
from pipeline.preprocessing.blocks import to_frame
from pipeline.preprocessing.cluster import Workers
from pipeline.preprocessing.expressions import (
    add_expressions,
    merge_statistics,
    part_statistics,
)
from pipeline.preprocessing.gpu import frames
from pipeline.preprocessing.gpu.log import DeviceShard
from pipeline.preprocessing.item_values import newest_values
from pipeline.preprocessing.report.counts import Counts, Window, count_sessions
from pipeline.preprocessing.sorting.log import Log, Shard
from pipeline.preprocessing.sorting.session_rules import keep_newest
from pipeline.preprocessing.sorting.spill import read
from pipeline.preprocessing.split import rows_of
from pipeline.recipe.feature_expressions import statistics_of
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve.runtime.expressions import Statistic

if TYPE_CHECKING:  # NVTabular is imported while the log is read
    from pipeline.preprocessing.gpu.shards import DeviceEncoder
    from pipeline.preprocessing.workflow import Statistics


def fit(
    recipe: Preprocess,
    log: Log,
    splits: list[NDArray[Any]],
    pool: Workers,
    base: Fitted | None = None,
) -> Fitted:
    """Fit the state on the training sessions, extending that of `base`.

    `splits` are the part numbers of `split.split_sessions` for each shard. If the last interactions
    are held out, the catalogue has the items of all interactions.
    """
    from pipeline.preprocessing import workflow

    items: list[pa.Array] = []
    shards = list(zip(log.shards, splits, strict=True))
    expressions: dict[str, Statistic] = {}
    if any(statistics_of(feature.parsed.tree) for feature in recipe.expression_features):
        parts = pool.map(_expression_statistics, ((recipe, *shard) for shard in shards))
        expressions = merge_statistics(recipe, parts, {} if base is None else base.expressions)

    def statistics() -> Iterator["Statistics"]:
        tasks = ((recipe, shard, split, expressions) for shard, split in shards)
        for of_shard, shard_items in pool.map(_statistics, tasks):
            if shard_items is not None:
                items.append(shard_items)
            yield of_shard

    fitted = workflow.fit(recipe, statistics(), log.types, log.timestamp_type, base, expressions)
    if items:
        fitted = workflow.with_items(fitted, pc.unique(pa.chunked_array(items)))
    return fitted


def _expression_statistics(
    recipe: Preprocess, shard: Shard, split: NDArray[Any]
) -> dict[str, pa.Table]:
    rows = rows_of(recipe, split, shard.lengths)["train"]
    return part_statistics(recipe, _filter(_read(shard), rows))


def _statistics(
    recipe: Preprocess, shard: Shard, split: NDArray[Any], expressions: dict[str, Statistic]
) -> tuple["Statistics", pa.Array | None]:
    """Statistics of the training interactions, and all items if the last ones are held out."""
    rows = rows_of(recipe, split, shard.lengths)["train"]
    if (device := _device_frames(recipe)) is not None:
        from pipeline.preprocessing.gpu import shards

        return shards.statistics(recipe, shards.interactions_of(device, shard), rows)
    from pipeline.preprocessing import workflow

    table = _read(shard)
    items = pc.unique(table[ITEM].combine_chunks()).drop_null() if recipe.split.held_out else None
    if items is not None and pa.types.is_dictionary(items.type):
        items = items.dictionary_decode()
    table = add_expressions(recipe, _filter(table, rows), expressions)
    return workflow.statistics(recipe, to_frame(table)), items


def _device_frames(recipe: Preprocess) -> frames.Frames | None:
    """The device on which shards are encoded; expressions are for the CPU."""
    return None if recipe.expression_features else frames.device_frames()


def _read(shard: Shard) -> pa.Table:
    assert shard.path is not None  # noqa: S101  shards on a device have their own engine
    return read(shard.path)


def _filter(table: pa.Table, rows: NDArray[Any]) -> pa.Table:
    return table if rows.all() else table.filter(pa.array(rows))


@dataclass(frozen=True)
class EncodedSessions:
    """Sessions of one part and one shard."""

    table: pa.Table
    """One row per session, sorted by id."""
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
    splits: list[NDArray[Any]] | None,
    part: str,
    pool: Workers,
    window: Window | None = None,
) -> Iterator[EncodedSessions]:
    """Encoded sessions of a part, sorted by id; all sessions of the log without `splits`.

    `fitted` is the fitted state, or the directory from which workers read it. `window` is the range
    of hours that the data report counts. Shards without a session of the part yield nothing.
    """
    encoder = fitted if isinstance(fitted, Path) else _encoder_of(fitted, part)
    tasks = (
        (encoder, shard, None if splits is None else splits[number], part, window)
        for number, shard in enumerate(log.shards)
    )
    yield from (sessions for sessions in pool.map(_encode, tasks) if sessions is not None)


class _Encoder:
    """The workflow of one part, shared by the threads that transform its shards."""

    def __init__(self, fitted: Fitted, part: str) -> None:
        from pipeline.preprocessing import workflow
        from pipeline.preprocessing.operators.sessions import session_order

        self.fitted = fitted
        self._workflow, self._order = workflow, session_order
        self._graph = workflow.rebuild(fitted, None, training=part == "train")
        self._lock = Lock()

    def encode(self, shard: Shard, rows: NDArray[Any]) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Masked interactions in the order of the shard and sorted by session id, and encoded
        sessions."""
        table = _filter(_read(shard), rows)
        table = add_expressions(self.fitted.recipe, table, self.fitted.expressions)
        frame = to_frame(table)
        with self._lock:  # the first call fits the schema of the graph
            self._workflow.output_schema(self._graph, frame)
        by_id = table
        if self.fitted.recipe.session_gap is not None:  # ids are text since the shard was sorted
            order, _ = self._order(frame[SESSION], frame[TIMESTAMP])
            by_id = table.take(pa.array(order))
        return table, by_id, as_table(self._workflow.transform(self._graph, frame))


def _encoder_of(fitted: Fitted, part: str) -> "_Encoder | DeviceEncoder":
    """Encoder of the engine of this process."""
    if (device := _device_frames(fitted.recipe)) is None:
        return _Encoder(fitted, part)
    from pipeline.preprocessing.gpu.shards import DeviceEncoder

    return DeviceEncoder(device, fitted, part)


@lru_cache(maxsize=1)
def _cached_encoder(directory: Path, _modified_ns: int, part: str) -> "_Encoder | DeviceEncoder":
    """Encoder of a worker process, kept for all shards of a part."""
    return _encoder_of(Fitted.read(directory), part)


def _encode(
    encoder: "_Encoder | DeviceEncoder | Path",
    shard: Shard,
    split: NDArray[Any] | None,
    part: str,
    window: Window | None,
) -> EncodedSessions | None:
    if isinstance(encoder, Path):
        modified_ns = (encoder / FITTED_DIRECTORY / FITTED_FILE).stat().st_mtime_ns
        encoder = _cached_encoder(encoder, modified_ns, part)
    fitted = encoder.fitted
    if split is None:
        rows = np.ones(int(shard.lengths.sum()), np.bool_)
    else:
        rows = rows_of(fitted.recipe, split, shard.lengths)[part]
    if not rows.any():
        return None
    table, by_id, sessions = encoder.encode(shard, rows)
    times = table[TIMESTAMP].to_numpy()
    is_training = part == "train"
    return EncodedSessions(
        table=keep_newest(sessions, _max_training_length(fitted)) if is_training else sessions,
        item_values=newest_values(fitted, table) if is_training else {},
        interactions=len(times),
        first=int(times.min()),
        last=int(times.max()),
        counts=count_sessions(fitted, by_id, sessions, part, window),
    )


def schema_of(fitted: Fitted, log: Log) -> Any:
    """Merlin's schema of the training sessions."""
    from pipeline.preprocessing import workflow

    shard = log.shards[0]
    if isinstance(shard, DeviceShard):
        table = shard.interactions.first_row()
    else:
        table = _read(shard).slice(0, 1)
        table = add_expressions(fitted.recipe, table, fitted.expressions)
    graph = workflow.rebuild(fitted, _max_training_length(fitted))
    return workflow.output_schema(graph, to_frame(table))


def _max_training_length(fitted: Fitted) -> int:
    """L + 1, the longest training session: L interactions that the model reads and a target."""
    return fitted.recipe.max_sequence_length + 1


@contextmanager
def copy_on_write() -> Iterator[None]:
    """Enable pandas' copy-on-write, the default of pandas 3.

    Merlin's executor passes each column on several times. The option is global to the process, so
    it must not change while threads work.
    """
    with pd.option_context("mode.copy_on_write", True):
        yield


def as_table(sessions: pd.DataFrame) -> pa.Table:
    """Arrow table of the sessions without pandas' metadata, which breaks reading list columns."""
    table = pa.Table.from_pandas(sessions, preserve_index=False)
    names = [SESSION, *(name for name in table.column_names if name != SESSION)]
    return table.select(names).replace_schema_metadata(None)
