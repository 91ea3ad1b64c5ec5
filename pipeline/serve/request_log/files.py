"""Parquet files of a request log: each is written at once and under its name only when whole."""

import os
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import ConfigError
from pipeline.core.files import atomic_write

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
"""Columns of a log, one row a session of a request: `items` oldest first, `recommendations` best
first, both as raw ids in text."""
FILE_PATTERN = "requests-*.parquet"
_ABANDONED_SECONDS = 3600
"""Age at which the hidden file of a writer that was killed is removed."""


def open_log(directory: Path) -> None:
    """Make the directory, which only its owner may read, and remove what killed writers left.

    ConfigError where files cannot be written there.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in directory.glob(f".{FILE_PATTERN}.*"):
            with suppress(FileNotFoundError):  # another server has renamed it
                if time.time() - file.stat().st_mtime > _ABANDONED_SECONDS:
                    file.unlink()
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
    with atomic_write(directory / name) as partial:
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            pq.write_table(table, stream, compression="zstd")
    return int(table.num_rows)
