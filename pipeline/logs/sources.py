"""Logs by glob, on standard input and in remote storage, as local files."""

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pipeline.core.artifact import scratch_beside
from pipeline.core.errors import DataError
from pipeline.logs.row_counts import RowCounts
from pipeline.logs.text import TextFile

STANDARD_INPUT = "-"
_GLOB = re.compile(r"[*?\[]")
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
}
_LONGEST_REASON = 300


@contextmanager
def local_logs(addresses: Sequence[str], out: Path) -> Iterator[list[Path]]:
    """Local paths of logs, in their order.

    A glob is replaced by its matches in the order of their names. Remote files and standard input
    are copied into a folder beside `out`, which is removed at the end, or by the next run if this
    one is killed. DataError for an address of which nothing can be read.
    """
    with ExitStack() as stack:
        paths: list[Path] = []
        for address in addresses:
            if address == STANDARD_INPUT or "://" in address:
                folder = stack.enter_context(scratch_beside(out, "logs"))
                is_input = address == STANDARD_INPUT
                paths += [_spool(folder)] if is_input else _fetch(address, folder)
            elif _GLOB.search(address) and not Path(address).exists():
                paths += _matches(address, map(Path, _storage(address)[0].glob(address)))
            else:
                paths.append(Path(address))
        yield paths


def _matches(address: str, paths: Iterator[Path]) -> list[Path]:
    files = sorted(path for path in paths if path.name[:1] not in {".", "_"})
    if not files:
        raise DataError(f"{address} matches no file.")
    return files


def _spool(folder: Path) -> Path:
    """Copy standard input to a file whose suffix follows from its content."""
    file = folder / "stdin"
    with file.open("wb") as stream:
        shutil.copyfileobj(sys.stdin.buffer, stream)
    with file.open("rb") as stream:
        is_parquet = stream.read(4) == b"PAR1"
    suffix = ".parquet" if is_parquet else _text_suffix(file)
    return file.rename(file.with_suffix(suffix))


def _text_suffix(file: Path) -> str:
    try:
        first = next(TextFile(file, RowCounts()).blocks(), b"")
    except OSError as error:
        raise DataError(f"The standard input cannot be read: {error}.") from None
    return ".jsonl" if first.lstrip()[:1] in {b"{", b"["} else ".csv"


def _fetch(address: str, folder: Path) -> list[Path]:
    """Copies of a remote file, of all files of a folder, or of those that a glob matches."""
    protocol = address.split("://")[0]
    try:
        return _copy(address, folder)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        advice = f"Run `pip install {package}` first." if package else f"{error}"
        raise DataError(f"{address} cannot be read without a package. {advice}") from None
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{address} does not exist.") from None
    except Exception as error:  # each storage has its own errors
        line = " ".join(str(error).split()) or type(error).__name__
        line = line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..."
        raise DataError(f"{address} cannot be read: {line}") from None


def _storage(address: str) -> tuple[Any, str]:
    """File system of an address, and the path in it."""
    from fsspec.core import url_to_fs  # only remote logs need it

    storage, path = url_to_fs(address)
    return storage, path


def _copy(address: str, folder: Path) -> list[Path]:
    storage, path = _storage(address)
    if address.startswith("http"):  # fsspec would read folders and globs from the links of a page
        return [_copy_file(storage, path, folder)]
    if not _GLOB.search(path) or storage.exists(path):
        return [_copy_tree(storage, path, folder)]
    return _matches(address, (_copy_tree(storage, each, folder) for each in storage.glob(path)))


def _copy_tree(storage: Any, path: str, folder: Path) -> Path:
    """Copy of a file, or of all files of a folder."""
    if not storage.isdir(path):
        return _copy_file(storage, path, folder)
    target = _target(path, folder)
    target.mkdir(parents=True, exist_ok=True)
    for file in storage.find(path):
        _copy_file(storage, file, folder)
    return target


def _copy_file(storage: Any, path: str, folder: Path) -> Path:
    target = _target(path, folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    storage.get_file(path, str(target))
    return target


def _target(path: str, folder: Path) -> Path:
    """Path of a copy with the folders of the original, as they may name columns."""
    if "://" in path:  # the query of a URL is not part of a file name
        path = urlsplit(path).path
    parts = [part for part in PurePosixPath(path).parts if part not in {"/", ".."}]
    return folder.joinpath(*parts)
