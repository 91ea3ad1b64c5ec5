"""`pipeline predict`: lists, or the vectors that make them, as Parquet files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from pipeline.core.columns import ITEM, SESSION
from pipeline.core.files import check_parquet, new_parquet
from pipeline.data.directory import Data
from pipeline.data.loader import count_sessions, session_ids
from pipeline.evaluation.recommendations import Lists
from pipeline.evaluation.recommender import Recommender
from pipeline.model.run import Run

_TYPES = {"int64": pa.int64(), "string": pa.string()}
_VECTOR = pa.list_(pa.float32())
_VECTORS_AT_ONCE = 16_384


def write_lists(
    run: Run | Path,
    data: Data | Path,
    part: str,
    out: Path,
    *,
    k: int = 20,
    filter_seen: bool = False,
    blocked: Sequence[Any] = (),
    candidates: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Write session_id, item_ids and scores, a row a session, best first; return the counts.

    session_id is there where the data has it. See `Recommender.recommend` for the filters.
    """
    check_parquet(out)
    recommender, data = Recommender.open(run), Data.open(data)
    unknown_candidates = 0
    if candidates is not None:
        known = recommender.is_known(candidates)
        if known.any():  # where none is, the error tells
            unknown_candidates = int((~known).sum())
            candidates = [i for i, there in zip(candidates, known, strict=True) if there]
    lists = recommender.recommend(
        data, part, k, filter_seen=filter_seen, blocked=blocked, candidates=candidates
    )
    item_type = _TYPES[recommender.fitted.item.type]
    columns = {"item_ids": pa.list_(item_type), "scores": _VECTOR}
    short = 0
    with _session_rows(recommender, data, part, out, columns) as write:
        for batch in lists:
            write(_ragged(batch, item_type))
            short += int((batch.counts < k).sum())
    return {
        "part": part,
        "sessions": count_sessions(data.path, part),
        "k": k,
        "short_lists": short,
        "unknown_blocked": int((~recommender.is_known(blocked)).sum()),
        "unknown_candidates": unknown_candidates,
    }


def write_session_embeddings(
    run: Run | Path, data: Data | Path, part: str, out: Path
) -> dict[str, Any]:
    """Write session_id, where the data has it, and embedding, a row a session; return counts."""
    check_parquet(out)
    recommender, data = Recommender.open(run), Data.open(data)
    batches = recommender.session_embeddings(data, part)
    with _session_rows(recommender, data, part, out, {"embedding": _VECTOR}) as write:
        for vectors in batches:
            write([_vectors(vectors)])
    width = recommender.item_embeddings()[1].shape[1]
    return {"part": part, "sessions": count_sessions(data.path, part), "width": width}


def write_item_embeddings(run: Run | Path, out: Path) -> dict[str, Any]:
    """Write item_id and embedding, a row an item of the catalogue; return the counts."""
    check_parquet(out)
    recommender = Recommender.open(run)
    ids, vectors = recommender.item_embeddings()
    item_type = _TYPES[recommender.fitted.item.type]
    schema = pa.schema({ITEM: item_type, "embedding": _VECTOR})
    with new_parquet(out, schema) as write:
        for first in range(0, len(ids), _VECTORS_AT_ONCE):
            rows = slice(first, first + _VECTORS_AT_ONCE)
            parts = [pa.array(ids[rows], item_type), _vectors(vectors[rows])]
            write(pa.table(parts, schema=schema))
    return {"items": len(ids), "width": vectors.shape[1]}


@contextmanager
def _session_rows(
    recommender: Recommender, data: Data, part: str, out: Path, columns: dict[str, pa.DataType]
) -> Iterator[Callable[[list[pa.Array]], None]]:
    """Give a function that writes these columns of the next sessions, with the sessions' ids."""
    ids = session_ids(data.path, part)
    session_type = _TYPES[recommender.fitted.session_type]
    if ids is not None:
        columns = {SESSION: session_type, **columns}
    schema = pa.schema(columns)
    total = count_sessions(data.path, part)
    written = 0
    with (
        tqdm(total=total, desc="predict", unit="session", leave=False, disable=None) as bar,
        new_parquet(out, schema) as write_table,
    ):

        def write(arrays: list[pa.Array]) -> None:
            nonlocal written
            begin, written = written, written + len(arrays[0])
            if ids is not None:
                arrays = [pa.array(ids[begin:written], session_type), *arrays]
            write_table(pa.table(arrays, schema=schema))
            bar.update(written - begin)

        yield write
        assert written == total  # noqa: S101


def _ragged(lists: Lists, item_type: pa.DataType) -> list[pa.Array]:
    """Ids and scores as (B,) lists, without what fills them up."""
    there = np.arange(lists.items.shape[1]) < lists.counts[:, np.newaxis]  # (B, K)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lists.counts)]), pa.int32())
    return [
        pa.ListArray.from_arrays(offsets, pa.array(lists.items[there], item_type)),
        pa.ListArray.from_arrays(offsets, pa.array(lists.scores[there], pa.float32())),
    ]


def _vectors(vectors: np.ndarray) -> pa.Array:
    """(n, E) -> (n,) lists."""
    offsets = pa.array(np.arange(len(vectors) + 1) * vectors.shape[1], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel(), pa.float32()))
