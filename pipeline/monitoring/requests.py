"""Logged requests as arrays, with items as positions in a list of ids."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.json_text import parse_json
from pipeline.core.parquet_bounds import Free, check_expansion, open_parquet
from pipeline.serve.request_log.files import FILE_PATTERN, SCHEMA
from pipeline.serve.request_log.options import EXPERIMENT_KEY

FREE_ROWS = 500_000
"""Requests of a log from which it needs a byte a request; logs have 20 and more."""
_FREE = Free(values=5_000_000, bytes=1 << 23)
_LAST_MICROSECOND = 253_402_300_800 * 10**6
"""Year 10,000."""
DAY_MICROSECONDS = 86_400 * 10**6
NO_SESSION = -1


class Ragged(NamedTuple):
    """Concatenated lists of different lengths."""

    values: NDArray[Any]
    offsets: NDArray[Any]
    """(N + 1,)"""

    @property
    def lengths(self) -> NDArray[Any]:
        """(N,)"""
        return np.diff(self.offsets)

    def take(self, rows: NDArray[Any]) -> "Ragged":
        """Return the lists at (M,) `rows`."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        shifts = np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(self.values[np.arange(offsets[-1]) + shifts], offsets)


@dataclass(frozen=True)
class Requests:
    """N logged requests, in the order of time.

    Items are positions in `ids`, which begins with the catalogue of the training data.
    """

    ids: pa.Array
    num_catalogue: int
    times: NDArray[Any]
    """(N,) microseconds since 1970 UTC."""
    sessions: NDArray[Any]
    """(N,) session numbers, NO_SESSION for a request without a session."""
    session_names: pd.Index
    versions: pd.Series
    """(N,) model and version as text, such as `recommender v3`."""
    experiments: pd.Series
    """(N,) name of the experiment, missing for a request outside experiments."""
    arms: pd.Series
    items: Ragged
    lists: Ragged
    shares: dict[str, list[dict[str, float]]]
    """Shares of the arms by experiment, several if they were changed."""

    @property
    def days(self) -> NDArray[Any]:
        """(N,) days since 1970 UTC."""
        return self.times // DAY_MICROSECONDS

    def item_positions(self, texts: pa.Array) -> NDArray[Any]:
        """(M,) ids as text -> positions, -1 for an id outside training data and log."""
        positions = pd.Index(self.ids.to_pandas()).get_indexer(texts.to_pandas())
        return np.asarray(positions)


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files of folders, and single files. DataError without a file, and for a pipe."""
    paths = list(paths)
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob(FILE_PATTERN)) if path.is_dir() else [path]
    if not files:
        raise DataError(
            f"{', '.join(map(str, paths))} has no {FILE_PATTERN}. Expected a directory of "
            "`pipeline serve --log-requests`."
        )
    for file in files:
        if file.exists() and not file.is_file():  # reading a pipe would block
            raise DataError(f"{file} is no file of a request log.")
    return files


def read_requests(paths: Iterable[Path], catalogue: pa.Array) -> Requests:
    """Read a log; `catalogue` are the raw ids of the training data as text.

    DataError for a file of another form, and for a log without a request.
    """
    tables: list[pa.Table] = []
    shares: dict[str, list[dict[str, float]]] = {}
    files = find_files(paths)
    _check_rows(files)
    for file in files:
        table, experiment = _read(file)
        tables.append(table)
        for name, values in experiment.items():
            shares.setdefault(name, [])
            if values not in shares[name]:
                shares[name].append(values)
    table = pa.concat_tables(tables).sort_by("time").combine_chunks()
    if not table.num_rows:
        raise DataError(f"{', '.join(map(str, paths))} has no request.")
    items, lists = (table[name].combine_chunks() for name in ("items", "recommendations"))
    each = [catalogue, items.flatten(), lists.flatten()]
    texts = pa.concat_arrays([part.cast(pa.large_string()) for part in each])
    coded = texts.dictionary_encode()
    codes = coded.indices.to_numpy().astype(np.int64)
    stop = len(catalogue) + len(items.flatten())
    sessions, names = pd.factorize(table["session"].to_pandas())
    versions = table["model"].to_pandas() + " v" + table["version"].to_pandas().astype(str)
    return Requests(
        ids=coded.dictionary,
        num_catalogue=len(catalogue),
        times=table["time"].cast(pa.int64()).to_numpy(),
        sessions=sessions,
        session_names=pd.Index(names),
        versions=versions,
        experiments=table["experiment"].to_pandas(),
        arms=table["arm"].to_pandas(),
        items=Ragged(codes[len(catalogue) : stop], _offsets(items)),
        lists=Ragged(codes[stop:], _offsets(lists)),
        shares=shares,
    )


def _check_rows(files: list[Path]) -> None:
    """DataError for more requests than the bytes of a log hold, before they are read."""
    num_rows = num_bytes = 0
    for file in files:
        with _reading(file), open_parquet(file) as parquet:
            num_rows += parquet.metadata.num_rows
            num_bytes += file.stat().st_size
        if num_rows > max(FREE_ROWS, num_bytes):
            raise DataError(
                f"{file} is no file of a request log: {num_rows:,} requests up to it in "
                f"{num_bytes:,} bytes, more than one a byte."
            )


def _read(file: Path) -> tuple[pa.Table, dict[str, dict[str, float]]]:
    """Return the rows of a file and the shares of its experiment by name."""
    with _reading(file):
        check_expansion(file, _FREE)
        table = pq.read_table(
            file, schema=SCHEMA, partitioning=None, page_checksum_verification=True
        )
        schema = pq.read_schema(file)
        if missing := [name for name in SCHEMA.names if name not in schema.names]:
            raise ValueError(f"it has no column {missing[0]!r}.")
        _check_values(table)
        metadata = schema.metadata or {}
        experiment = parse_json(metadata.get(EXPERIMENT_KEY, b"null"))
        if experiment is None:
            return table, {}
        shares = {str(arm["name"]): float(arm["share"]) for arm in experiment["arms"]}
        return table, {str(experiment["name"]): shares}


def _check_values(table: pa.Table) -> None:
    """ValueError for a value that is missing, and for a time that no calendar has."""
    for name in ("time", "model", "version", "items", "recommendations"):
        column = table[name]
        is_list = pa.types.is_list(column.type)
        if column.null_count or (is_list and pc.list_flatten(column).null_count):
            raise ValueError(f"a value of {name!r} is missing.")
    times = table["time"].cast(pa.int64())
    if len(times) and not 0 <= pc.min(times).as_py() <= pc.max(times).as_py() < _LAST_MICROSECOND:
        raise ValueError("a time is before 1970 or after 9999.")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """DataError for a file that is no file of a request log."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        line = " ".join(str(error).split())[:300]
        raise DataError(f"{file} is no file of a request log: {line}") from None


def _offsets(lists: pa.ListArray) -> NDArray[Any]:
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0]
