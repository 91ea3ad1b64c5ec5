"""Sessions of a part of a data directory as tables and as ragged NumPy arrays."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, SESSION, SESSIONS_DIRECTORY, TIMESTAMP
from pipeline.core.errors import ArtifactError


def session_files(data: Path, part: str) -> list[Path]:
    """Parquet files of a part in reading order. ArtifactError if there is no such part."""
    files = list((data / SESSIONS_DIRECTORY / part).glob("*.parquet"))
    if not files:
        parts = sorted(p.name for p in (data / SESSIONS_DIRECTORY).glob("*") if p.is_dir())
        others = f"Use --part {' or '.join(parts)}, or set" if parts else "Set"
        raise ArtifactError(
            f"{data} has no {part} sessions, it has: {', '.join(parts) or 'none'}. {others} "
            f"`split.{part}` in the recipe, or give --test files, and preprocess again."
        )
    # as Merlin sorts them: part-2 before part-10
    return sorted(files, key=lambda file: _natural_sort_key(str(file)))


def _natural_sort_key(text: str) -> list[int | str]:
    """Digits compare as numbers, as in `dask.utils.natural_sort_key`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def read_sessions(data: Path, part: str, columns: list[str]) -> pa.Table:
    """Columns of a part, (sessions) rows in the order of the files.

    Columns that the files lack are left out. ArtifactError if there is no such part.
    """
    tables = []
    for file in session_files(data, part):
        names = pq.read_schema(file).names
        tables.append(pq.read_table(file, columns=[name for name in columns if name in names]))
    return pa.concat_tables(tables)


def session_ids(data: Path, part: str) -> NDArray[Any] | None:
    """(sessions,) raw ids in the order of the files; None if the files have none."""
    table = read_sessions(data, part, [SESSION])
    return table[SESSION].to_numpy() if SESSION in table.column_names else None


def count_sessions(data: Path, part: str) -> int:
    """Number of sessions of a part. ArtifactError if there is no such part."""
    return sum(pq.read_metadata(file).num_rows for file in session_files(data, part))


class Interactions(NamedTuple):
    """Interactions of concatenated sessions, oldest first."""

    values: NDArray[Any]
    """(interactions,) item indices."""
    offsets: NDArray[Any]
    """(sessions + 1,) position of the first interaction of each session, then the total."""
    times: NDArray[Any]
    """(interactions,) microseconds since 1970 UTC, or row numbers without a timestamp."""


def read_interactions(
    data: Path,
    part: str,
    *,
    by_time: bool = False,
    rows: Mapping[str, NDArray[Any]] | None = None,
) -> Interactions:
    """Interactions of a part, its sessions in the order of the files or, `by_time`, of their end.

    `rows` maps indices to those of a run, see `index_mapping`. ArtifactError if there is no such
    part.
    """
    table = read_sessions(data, part, [ITEM, TIMESTAMP])
    if by_time:
        times = table[TIMESTAMP].combine_chunks()
        ends = times.flatten().to_numpy()[times.offsets.to_numpy()[1:] - 1]
        table = table.take(np.argsort(ends, kind="stable"))
    return interactions_of(table, rows)


def interactions_of(
    sessions: pa.Table, rows: Mapping[str, NDArray[Any]] | None = None
) -> Interactions:
    """Interactions of a table of sessions; `rows` maps indices as in `read_interactions`."""
    lists = sessions[ITEM].combine_chunks()
    items = lists.flatten().to_numpy()
    return Interactions(
        rows[ITEM][items] if rows and ITEM in rows else items,
        np.concatenate([[0], np.cumsum(np.diff(lists.offsets.to_numpy()))]),
        sessions[TIMESTAMP].combine_chunks().flatten().to_numpy(),
    )
