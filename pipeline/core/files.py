"""Single files: atomic writes, hashes, Parquet output, resources of the package."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.core.errors import ArtifactError, ConfigError, PipelineError
from pipeline.core.locks import exclusive, lock, remove_leftovers, sibling

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_WRITTEN_BY = b"written_by"
_ROW_GROUP_BYTES = 16 << 20
SMALL_BYTES = 16 << 20
"""Largest bytes of files that are read whole: descriptions, lists of ids, keys."""


@contextmanager
def atomic_write(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield a hidden, empty file beside `path`; what is written there replaces `path` at the end.

    An exception in the block leaves `path` as it was. `mode` are the permissions, less the umask.
    ArtifactError if another process is writing `path`, or the disk does not take the file.
    """
    partial = sibling(path)
    with written_errors(path, partial), exclusive(path.parent):
        if not remove_leftovers(path):
            raise ArtifactError(
                f"{path} is being written by another process. Wait for it, or choose another name."
            )
        partial.touch(mode, exist_ok=False)
        descriptor = lock(partial)
    try:
        with written_errors(path, partial):
            yield partial
            sync(partial)
            partial.replace(path)
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


_NOT_WRITTEN = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ESTALE, errno.EXDEV, errno.EMFILE, errno.ENFILE, errno.ENOLCK),
)


@contextmanager
def written_errors(path: Path, partial: Path) -> Iterator[None]:
    """Turn errors of the disk into an ArtifactError that names `path`.

    It converts errors of `path`, of files in `partial`, where `path` is written, and those without
    a file name, such as a failed write or an error of pyarrow.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            reason = " ".join(str(error.strerror).split()).removesuffix(".")
            if error.errno not in _NOT_WRITTEN:
                raise
        else:
            name = Path(os.fsdecode(error.filename))
            if name not in (path, partial) and partial not in name.parents:
                raise
            reason = str(error.strerror)
            if partial in name.parents:
                reason = f"{name.relative_to(partial)}: {reason}"
        raise ArtifactError(f"{path} was not written: {reason}.{_advice(error.errno)}") from error


def _advice(number: int | None) -> str:
    """Return the advice for an error of the disk, with a space before it."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        return " Free space and run the command again, or choose another --out."
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return " Choose another --out."
    if number in (errno.EMFILE, errno.ENFILE):
        return " Raise the limit of open files (ulimit -n)."
    return ""


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_array(path: Path, array: "NDArray[Any]") -> None:
    """Write an array as .npy. OSError if the disk does not take it.

    `numpy.save` with a path buffers in C and ignores the error of the last write.
    """
    import numpy as np

    with path.open("wb") as stream:
        np.save(SimpleNamespace(write=stream.write), array, allow_pickle=False)


def read_small(path: Path, most_bytes: int = SMALL_BYTES) -> bytes:
    """Return the content of a file or pipe. OSError for more than `most_bytes`.

    A pipe without a writer is empty, without waiting for one.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        os.set_blocking(descriptor, True)
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes")
    return content


def read_small_text(path: Path) -> str:
    """Return a UTF-8 file of an artifact. OSError for a pipe, and as `read_small`."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no file")
    return read_small(path).decode("utf-8")


def sync(path: Path) -> None:
    """Wait until a file or directory has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of the content, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_parquet(path: Path) -> None:
    """ConfigError if `path` does not end in .parquet or `new_parquet` did not write it."""
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
        raise ConfigError(f"{path} holds something else; it is left alone. Choose another --out.")


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
    with (
        atomic_write(path) as partial,
        pq.ParquetWriter(partial, schema, write_page_checksum=True) as writer,
    ):

        def append(table: pa.Table) -> None:
            pending.append(table.cast(schema))
            if sum(part.nbytes for part in pending) >= _ROW_GROUP_BYTES:
                writer.write_table(pa.concat_tables(pending))
                pending.clear()

        yield append
        if pending:
            writer.write_table(pa.concat_tables(pending))


def find_resource(name: str) -> Path:
    """Return the path of `configs/...` or `triton_models/...`, installed or in the checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package, package.parent):
        if (folder / name).exists():
            return folder / name
    raise PipelineError(f"{name} is missing from this installation. Install it again.")
