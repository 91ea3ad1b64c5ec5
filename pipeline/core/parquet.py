"""Parquet files for others to read, whole or absent."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import __version__
from pipeline.core.errors import ConfigError

_WRITTEN_BY = b"written_by"
_ROW_GROUP_BYTES = 16 << 20


def check_parquet(path: Path) -> None:
    """ConfigError unless a Parquet file can be written here; one of ours would be replaced."""
    if path.suffix != ".parquet":
        raise ConfigError(f"{path}: expected a name that ends in .parquet.")
    if not path.exists():
        return
    try:
        ours = _WRITTEN_BY in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        ours = False
    if not ours:
        raise ConfigError(
            f"{path} holds something else than what this command writes; it is left alone. Choose "
            "another --out."
        )


@contextmanager
def new_parquet(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Give a function that writes tables of this schema one after the other.

    They become the file when the block ends without an error; one of ours is replaced.
    """
    check_parquet(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = schema.with_metadata({_WRITTEN_BY: f"pipeline {__version__}"})
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    waiting: list[pa.Table] = []
    try:
        with pq.ParquetWriter(partial, schema) as writer:

            def write(table: pa.Table) -> None:
                # batches of a few hundred rows would make as many row groups
                waiting.append(table.cast(schema))
                if sum(part.nbytes for part in waiting) >= _ROW_GROUP_BYTES:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting.clear()

            yield write
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
