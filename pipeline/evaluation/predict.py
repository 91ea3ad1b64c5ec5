"""`pipeline predict`: recommendations, or the vectors behind them, as Parquet files."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.core.columns import ITEM, SESSION
from pipeline.core.errors import ConfigError
from pipeline.core.files import check_parquet, new_parquet
from pipeline.data.directory import Data
from pipeline.data.sessions import count_sessions, session_ids
from pipeline.evaluation.recommender import Recommendations, Recommender
from pipeline.model.run import Run

_TYPES = {"int64": pa.int64(), "string": pa.string()}
_VECTOR = pa.list_(pa.float32())
_VECTORS_PER_TABLE = 16_384


def write_recommendations(
    run: Run | Path,
    data: Data | Path,
    part: str,
    out: Path,
    *,
    k: int = 20,
    filter_seen: bool | None = None,
    exclude: Sequence[Any] = (),
    candidates: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Write session_id, item_ids and scores, one row per session, best first; return the counts.

    session_id is left out if the data have none. Predictions of target tasks are columns with their
    names, lists for targets per item. See `Recommender.recommend` for the filters; `filter_seen`
    defaults to that of the data's recipe. ConfigError for filters of a run that does not rank
    items, and for a task with the name of a column.
    """
    check_parquet(out)
    recommender, data = Recommender.open(run), Data.open(data)
    _check_names(recommender)
    if not recommender.model.ranks_items:
        if filter_seen or len(exclude) or candidates is not None:
            raise ConfigError(
                f"{recommender.run.path} does not predict the next item (`next_item: false`), so "
                "there are no lists to filter. Leave out the filters."
            )
        return _write_targets(recommender, data, part, out)
    if filter_seen is None:
        filter_seen = data.recipe.filter_seen
    candidates, num_unknown = _without_unknown(recommender, candidates)
    batches = recommender.recommend(
        data, part, k, filter_seen=filter_seen, exclude=exclude, candidates=candidates
    )
    item_type = _TYPES[recommender.fitted.item.type]
    targets = recommender.predict_targets(data, part)
    num_short = 0

    def columns() -> Iterator[list[pa.Array]]:
        nonlocal num_short
        stop = 0
        for batch in batches:
            first, stop = stop, stop + len(batch.counts)
            num_short += int((batch.counts < k).sum())
            yield [*_list_columns(batch, item_type), *_slices(targets, first, stop)]

    per_item = recommender.model.item_target_names
    lists = {"item_ids": pa.list_(item_type), "scores": _VECTOR} | dict.fromkeys(per_item, _VECTOR)
    schema = lists | dict.fromkeys(targets, pa.float32())
    return {
        "part": part,
        "sessions": _write_sessions(recommender, data, part, out, schema, columns()),
        "targets": [*targets, *per_item],
        "k": k,
        "short_lists": num_short,
        "unknown_excluded": int((~recommender.in_catalogue(exclude)).sum()),
        "unknown_candidates": num_unknown,
    }


def _without_unknown(
    recommender: Recommender, candidates: Sequence[Any] | None
) -> tuple[Sequence[Any] | None, int]:
    """Return the candidates that the catalogue has, and how many it lacks.

    Without any of the catalogue all are returned: `recommend` raises an error with the ids.
    """
    if candidates is None:
        return None, 0
    in_catalogue = recommender.in_catalogue(candidates)
    if not in_catalogue.any():
        return candidates, 0
    return [candidates[i] for i in np.flatnonzero(in_catalogue)], int((~in_catalogue).sum())


def _check_names(recommender: Recommender) -> None:
    for task in recommender.model.all_targets:
        if task.task_name in (SESSION, "item_ids", "scores"):
            raise ConfigError(
                f"The task {task.task_name!r} has the name of another column of the file. Set "
                "another task_name."
            )


def _write_targets(recommender: Recommender, data: Data, part: str, out: Path) -> dict[str, Any]:
    """Write session_id and the predictions of a run that does not rank items; return the counts."""
    targets = recommender.predict_targets(data, part)
    starts = range(0, count_sessions(data.path, part), _VECTORS_PER_TABLE)
    columns = (_slices(targets, first, first + _VECTORS_PER_TABLE) for first in starts)
    types = dict.fromkeys(targets, pa.float32())
    num_sessions = _write_sessions(recommender, data, part, out, types, columns)
    return {"part": part, "sessions": num_sessions, "targets": [*targets]}


def _slices(columns: dict[str, NDArray[Any]], first: int, stop: int) -> list[pa.Array]:
    return [pa.array(values[first:stop], pa.float32()) for values in columns.values()]


def write_session_embeddings(
    run: Run | Path, data: Data | Path, part: str, out: Path
) -> dict[str, Any]:
    """Write session_id, if the data have it, and embedding, one row per session; return the
    counts."""
    check_parquet(out)
    recommender, data = Recommender.open(run), Data.open(data)
    columns = ([_vectors(batch)] for batch in recommender.session_embeddings(data, part))
    schema = {"embedding": _VECTOR}
    num_sessions = _write_sessions(recommender, data, part, out, schema, columns)
    width = recommender.item_embeddings()[1].shape[1]
    return {"part": part, "sessions": num_sessions, "width": width}


def write_item_embeddings(run: Run | Path, out: Path) -> dict[str, Any]:
    """Write item_id and embedding, one row per item of the catalogue; return the counts."""
    check_parquet(out)
    recommender = Recommender.open(run)
    ids, vectors = recommender.item_embeddings()
    item_type = _TYPES[recommender.fitted.item.type]
    schema = pa.schema({ITEM: item_type, "embedding": _VECTOR})
    with new_parquet(out, schema) as write:
        for first in range(0, len(ids), _VECTORS_PER_TABLE):
            rows = slice(first, first + _VECTORS_PER_TABLE)
            columns = [pa.array(ids[rows], item_type), _vectors(vectors[rows])]
            write(pa.table(columns, schema=schema))
    return {"items": len(ids), "width": vectors.shape[1]}


def _write_sessions(
    recommender: Recommender,
    data: Data,
    part: str,
    out: Path,
    types: dict[str, pa.DataType],
    batches: Iterable[list[pa.Array]],
) -> int:
    """Write batches of columns of `types` with their session ids; return the number of rows."""
    ids = session_ids(data.path, part)
    session_type = _TYPES[recommender.fitted.session_type]
    schema = pa.schema(types if ids is None else {SESSION: session_type, **types})
    total = count_sessions(data.path, part)
    num_written = 0
    with (
        tqdm(total=total, desc="predict", unit="session", leave=False, disable=None) as bar,
        new_parquet(out, schema) as write,
    ):
        for columns in batches:
            stop = num_written + len(columns[0])
            if ids is not None:
                columns = [pa.array(ids[num_written:stop], session_type), *columns]
            write(pa.table(columns, schema=schema))
            bar.update(stop - num_written)
            num_written = stop
        assert num_written == total  # noqa: S101
    return total


def _list_columns(batch: Recommendations, item_type: pa.DataType) -> list[pa.Array]:
    """Item ids, scores and targets per item as (B,) lists without padding."""
    filled = np.arange(batch.items.shape[1]) < batch.counts[:, np.newaxis]  # (B, K)
    offsets = pa.array(np.concatenate([[0], np.cumsum(batch.counts)]), pa.int32())
    columns = [pa.array(batch.items[filled], item_type)]
    numbers = (batch.scores, *batch.targets.values())
    columns += [pa.array(values[filled], pa.float32()) for values in numbers]
    return [pa.ListArray.from_arrays(offsets, column) for column in columns]


def _vectors(vectors: NDArray[Any]) -> pa.Array:
    """(n, E) -> (n,) lists."""
    offsets = pa.array(np.arange(len(vectors) + 1) * vectors.shape[1], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel(), pa.float32()))
