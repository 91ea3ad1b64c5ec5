"""Decompression of files, recognised by their first bytes, as a stream of pieces."""

import bz2
import codecs
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.core.errors import DataError

DAMAGE = (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
"""Errors raised for a truncated or damaged file."""
MOST_INFLATED = 250
"""Maximum ratio of decompressed to compressed bytes; logs have 5 to 30."""
_FREE_BYTES = 1 << 24
"""Decompressed bytes below which the ratio is not checked."""
_PIECE_BYTES, _PACKED_BYTES = 1 << 16, 1 << 14
_HEAD_BYTES = 512
_SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz", ".zip": "zip"}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def compression_of(file: Path) -> str | None:
    """Name of the compression, None for a file that is not compressed.

    The suffix decides only if the first bytes are not text. OSError if the file cannot be read.
    """
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    is_text = head.startswith(_UTF16) or all(byte >= ord("\t") for byte in head)
    return None if is_text else _SUFFIXES.get(file.suffix.lower())


def inner_name(file: Path) -> str:
    """Name of a file in lower case without the suffix of its compression.

    The name inside a zip file counts if the file itself has no other suffix.
    """
    name = Path(file.name.lower())
    if name.suffix not in _SUFFIXES:
        return name.name
    if name.suffix == ".zip" and not Path(name.stem).suffix:
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
            return _member(file, archive).lower()
    return name.stem


def decompress(file: Path, compression: str) -> Iterator[bytes]:
    """Yield the content of a compressed file, then raise one of DAMAGE at a truncation or damage.

    DataError if the content exceeds MOST_INFLATED times the compressed bytes.
    """
    size = 0
    with file.open("rb", buffering=0) as stream:
        for piece in _READERS[compression](file, stream):
            size += len(piece)
            if size > max(_FREE_BYTES, MOST_INFLATED * stream.tell()):
                raise DataError(
                    f"{file} inflates more than {MOST_INFLATED} times, as no log does: "
                    f"{stream.tell():,} bytes became {size:,}. Unpack it to read it."
                )
            yield piece


def _member(file: Path, archive: zipfile.ZipFile) -> str:
    """Name of the only file of an archive."""
    names = [name for name in archive.namelist() if name[-1] != "/" and "__MACOSX" not in name]
    if len(names) != 1:
        raise DataError(f"{file} holds {len(names)} files. Expected a zip of one log; unpack it.")
    return names[0]


def _gzip(_file: Path, stream: BinaryIO) -> Iterator[bytes]:
    """Text of the members of a gzip file, up to the first damage."""
    gzip = None  # decompressor of the current member
    while piece := stream.read(_PACKED_BYTES):
        while piece := piece if gzip else piece.lstrip(b"\0"):  # padding between members
            gzip = gzip or zlib.decompressobj(wbits=31)
            before = gzip.copy()
            try:
                text = gzip.decompress(piece)
            except zlib.error:
                yield from _decompress_to_damage(before, piece)
                raise
            if text:
                yield text
            piece = gzip.unused_data
            gzip = None if gzip.eof else gzip
    if gzip is not None:
        raise EOFError("it is cut off")


def _decompress_to_damage(gzip: "zlib._Decompress", piece: bytes) -> Iterator[bytes]:
    """Text of a piece, byte by byte, up to the first byte that cannot be decompressed."""
    with suppress(zlib.error):
        for at in range(len(piece)):
            if text := gzip.decompress(piece[at : at + 1]):
                yield text


def _zip(file: Path, stream: BinaryIO) -> Iterator[bytes]:
    with zipfile.ZipFile(stream) as archive:
        try:
            yield from _read(lambda _: archive.open(_member(file, archive)), file, stream)
        except RuntimeError as error:  # encrypted, or compressed by a method that is not known
            raise DataError(f"{file} cannot be unpacked: {error}.") from None


def _zstd(stream: BinaryIO) -> pa.CompressedInputStream:
    return pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")


def _read(open_stream: Callable[[BinaryIO], Any], _file: Path, stream: BinaryIO) -> Iterator[bytes]:
    with open_stream(stream) as inflated:
        while piece := inflated.read1(_PIECE_BYTES):
            yield piece


_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    **{b"BZh%d" % level: "bzip2" for level in range(1, 10)},
    b"\xfd7zXZ\0": "xz",
    b"PK\x03\x04": "zip",
}
_READERS: dict[str, Callable[[Path, BinaryIO], Iterator[bytes]]] = {
    "gzip": _gzip,
    "zstd": partial(_read, _zstd),
    "bzip2": partial(_read, bz2.open),
    "xz": partial(_read, lzma.open),
    "zip": _zip,
}
