"""Statistics and encoded sessions of a shard, on the device.

The results are those of the CPU engine in `preprocessing.engine`.
"""

from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, NULL, PADDING, SESSION, TIMESTAMP
from pipeline.data.fitted import Fitted
from pipeline.preprocessing import workflow
from pipeline.preprocessing.blocks import to_frame
from pipeline.preprocessing.gpu.frames import Frames
from pipeline.preprocessing.gpu.interactions import Interactions
from pipeline.preprocessing.gpu.log import DeviceShard
from pipeline.preprocessing.operators.encode import value_indices
from pipeline.preprocessing.sorting.log import Shard
from pipeline.preprocessing.sorting.spill import read
from pipeline.recipe.preprocess import Preprocess

_SPARSE = 4
"""Ratio of distinct values to rows from which on codes are sorted instead of counted."""


def interactions_of(frames: Frames, shard: Shard) -> Interactions:
    """Interactions of a shard, moved to the device if they are in a file."""
    if isinstance(shard, DeviceShard):
        return shard.interactions
    assert shard.path is not None  # noqa: S101
    return Interactions.of_table(frames, read(shard.path), shard.lengths)


def statistics(
    recipe: Preprocess, interactions: Interactions, rows: NDArray[Any]
) -> tuple[workflow.Statistics, pa.Array | None]:
    """Statistics of masked interactions, and all items if the last interactions are held out."""
    items = None
    if recipe.split.held_out:
        items = _value_counts(interactions, ITEM)["value"].combine_chunks()
    selected = interactions.select(rows)
    counts = {name: _value_counts(selected, name) for name in workflow.category_columns(recipe)}
    return workflow.statistics(recipe, _number_frame(recipe, selected), counts), items


def _value_counts(interactions: Interactions, name: str) -> pa.Table:
    """Value counts of one column, the counterpart of `statistics.value_counts`."""
    arrays, codes = interactions.frames.arrays, interactions.rows[name]
    codes, dictionary = codes[codes >= 0], interactions.dictionaries[name]
    if len(dictionary) > _SPARSE * len(codes):
        occurring, counts = arrays.unique(codes, return_counts=True)
    else:
        counts = arrays.bincount(codes, minlength=len(dictionary))
        occurring = arrays.flatnonzero(counts)
        counts = counts[occurring]
    values = dictionary.take(pa.array(interactions.frames.host(occurring)))
    return pa.table({"value": values, "count": interactions.frames.host(counts).astype(np.int64)})


def _number_frame(recipe: Preprocess, interactions: Interactions) -> pd.DataFrame:
    """Inputs of the continuous features, on the host.

    The session column is the id if target encodings need it, otherwise the session number.
    """
    categories = [feature.name for feature in recipe.target_encoded_features]
    names = [n for n in interactions.rows if n not in interactions.dictionaries] + categories
    table = interactions.table([*names, SESSION] if categories else names)
    if not categories:
        table = table.append_column(SESSION, pa.array(interactions.session_numbers))
    return to_frame(table)


class DeviceEncoder:
    """Encoder of the shards of one part."""

    def __init__(self, frames: Frames, fitted: Fitted, part: str) -> None:
        self.fitted = fitted
        self._frames = frames
        self._numbers = workflow.rebuild_numbers(fitted, training=part == "train")
        self._order: list[str] = []
        self._lock = Lock()
        self._lookups: dict[str, tuple[pa.Array, Any]] = {}
        self._padded = {name for f in fitted.categorical for name in f.columns[1:]}

    def encode(self, shard: Shard, rows: NDArray[Any]) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Masked interactions in the order of the shard and sorted by session id, and encoded
        sessions."""
        recipe = self.fitted.recipe
        selected = interactions_of(self._frames, shard).select(rows)
        in_order = selected
        if recipe.session_gap is not None:  # ids are text since the shard was sorted
            in_order = selected.sorted_by_id()
        columns = {name: self._indices(in_order, name) for name in self.fitted.of_columns}
        if self._numbers is not None:
            frame = _number_frame(recipe, in_order)
            with self._lock:  # the first call fits the schema of the graph
                workflow.output_schema(self._numbers, frame)
            scaled = workflow.transform(self._numbers, frame)
            columns |= {name: scaled[name].to_numpy() for name in scaled.columns}
        columns[TIMESTAMP] = self._frames.host(in_order.rows[TIMESTAMP])
        table = selected.table(selected.rows)
        by_id = table if in_order is selected else in_order.table(in_order.rows)
        return table, by_id, self._sessions(in_order, columns)

    def _indices(self, interactions: Interactions, name: str) -> NDArray[Any]:
        """(N,) int64 indices of a column, through a table with the index of each distinct value."""
        values, lookup = self._lookups.get(name, (None, None))
        if values is not interactions.dictionaries[name]:
            values = interactions.dictionaries[name]
            vocabulary = self.fitted.of_columns[name]
            missing = PADDING if name in self._padded else NULL
            indices = value_indices(values, vocabulary.values, vocabulary.hash_buckets, missing)
            # one entry more than there are values, for null, whose code is -1
            lookup = self._frames.arrays.asarray(np.append(indices, missing))
            self._lookups[name] = values, lookup
        return self._frames.host(lookup[interactions.rows[name]])

    def _sessions(self, interactions: Interactions, columns: dict[str, NDArray[Any]]) -> pa.Table:
        """One row per session: lists, and one value of each session feature."""
        stops = np.cumsum(interactions.lengths)
        starts = stops - interactions.lengths
        offsets = pa.array(np.append(0, stops), pa.int32())
        of_session = {f.name for f in self.fitted.recipe.scalar_features if f.of == "session"}
        sessions: dict[str, pa.Array] = {SESSION: interactions.session_ids}
        for name in self._column_order(interactions):
            values = columns[name]
            if name in of_session:
                sessions[name] = pa.array(values[starts])
            else:
                sessions[name] = pa.ListArray.from_arrays(offsets, pa.array(values))
        return pa.table(sessions)

    def _column_order(self, interactions: Interactions) -> list[str]:
        """Columns of the sessions without the id, in the order of the CPU engine's workflow."""
        with self._lock:
            if not self._order:
                graph = workflow.rebuild(self.fitted, None)
                schema = workflow.output_schema(graph, to_frame(interactions.first_row()))
                self._order = [name for name in schema.column_names if name != SESSION]
            return self._order
