"""Parquet files of a request log, each written atomically."""

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import ConfigError
from pipeline.core.files import atomic_write
from pipeline.core.locks import exclusive, remove_abandoned

if TYPE_CHECKING:
    from pipeline.serve.request_log.exchange import Row  # imports Triton's client

SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", "UTC")),
        ("session", pa.string()),
        ("model", pa.string()),
        ("version", pa.int64()),
        ("experiment", pa.string()),
        ("arm", pa.string()),
        ("k", pa.int32()),
        ("items", pa.list_(pa.string())),
        ("recommendations", pa.list_(pa.string())),
    ]
)
"""Columns of a log, one row per session of a request: `items` oldest first, `recommendations` best
first, both raw ids as text."""
FILE_PATTERN = "requests-*.parquet"
_HIDDEN = r"\.requests-.*\.parquet\..*"
"""Partial files, of this and of earlier versions."""


def open_log(directory: Path) -> None:
    """Create the directory, which only its owner may read, and remove files of killed writers.

    ConfigError if the directory cannot be written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with exclusive(directory):
            remove_abandoned(directory, _HIDDEN)
    except OSError as error:
        raise ConfigError(
            f"--log-requests {directory} cannot be written: {error.strerror}. Choose another "
            "directory."
        ) from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--log-requests {directory} cannot be written by this user. Choose another directory."
        )


def to_batch(rows: "list[Row]") -> pa.RecordBatch:
    """Return rows as Arrow columns."""
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)


def write_file(directory: Path, batches: list[pa.RecordBatch], metadata: dict[bytes, bytes]) -> int:
    """Write one file, which only its owner may read, and return its number of rows."""
    table = pa.Table.from_batches(batches).replace_schema_metadata(metadata)
    first = datetime.fromtimestamp(table["time"][0].cast(pa.int64()).as_py() / 1e6, UTC)
    name = f"requests-{first:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}.parquet"
    with atomic_write(directory / name, mode=0o600) as partial:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
    return int(table.num_rows)
