"""Single files: atomic writes, hashes, Parquet output, resources of the package."""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import __version__
from pipeline.core.errors import ConfigError, PipelineError

if TYPE_CHECKING:
    import pyarrow as pa

_WRITTEN_BY = b"written_by"
_ROW_GROUP_BYTES = 16 << 20


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside `path`; what is written there replaces `path` at the end.

    An exception in the block leaves `path` as it was.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file or directory has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """SHA-256 of the content, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_parquet(path: Path) -> None:
    """ConfigError if `path` is no Parquet name or holds a file that `new_parquet` did not write."""
    import pyarrow as pa
    import pyarrow.parquet as pq

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
def new_parquet(path: Path, schema: "pa.Schema") -> Iterator[Callable[["pa.Table"], None]]:
    """Yield a function that appends a table of this schema to the Parquet file `path`.

    The file is written atomically. Tables are collected into row groups of about 16 MB.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_parquet(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = schema.with_metadata({_WRITTEN_BY: f"pipeline {__version__}"})
    pending: list[pa.Table] = []
    with atomic_write(path) as partial, pq.ParquetWriter(partial, schema) as writer:

        def append(table: pa.Table) -> None:
            pending.append(table.cast(schema))
            if sum(part.nbytes for part in pending) >= _ROW_GROUP_BYTES:
                writer.write_table(pa.concat_tables(pending))
                pending.clear()

        yield append
        if pending:
            writer.write_table(pa.concat_tables(pending))


def find_resource(name: str) -> Path:
    """Path of `configs/...` or `triton_models/...` in the installed package or the checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package, package.parent):
        if (folder / name).exists():
            return folder / name
    raise PipelineError(f"{name} is missing from this installation. Install it again.")
