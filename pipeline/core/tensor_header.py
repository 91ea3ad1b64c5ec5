"""Header of a safetensors file, checked before the library reads the file.

The library accepts a duplicate name silently, and its time grows with the number of names.
"""

import os
import stat
from pathlib import Path
from typing import Any

from pipeline.core.json_text import parse_json

MOST_TENSORS = 10_000
"""Largest number of tensors of a file; a checkpoint has four for each parameter of its model."""
MOST_HEADER_BYTES = 4 << 20
_METADATA = "__metadata__"
_LENGTH_BYTES = 8


def check_tensor_header(path: Path) -> None:
    """ValueError for too many or duplicate names, and for offsets that do not match the file.

    OSError for a file that cannot be read.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no file")
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if length > min(MOST_HEADER_BYTES, status.st_size - _LENGTH_BYTES):
            raise ValueError(
                f"a header of {length:,} bytes in {status.st_size:,}, of which up to "
                f"{MOST_HEADER_BYTES:,} are read"
            )
        content = stream.read(length)
    header = parse_json(content)
    if not isinstance(header, dict):
        raise ValueError("its header is no object of JSON")
    tensors = [value for name, value in header.items() if name != _METADATA]
    if len(tensors) > MOST_TENSORS:
        raise ValueError(f"{len(tensors):,} tensors, of which up to {MOST_TENSORS:,} are read")
    _check_offsets(tensors, status.st_size - _LENGTH_BYTES - length)


def _check_offsets(tensors: list[Any], num_bytes: int) -> None:
    """ValueError for tensors that overlap or do not end with the file."""
    end = 0
    try:
        for start, stop in sorted(tuple(tensor["data_offsets"]) for tensor in tensors):
            if start != end or stop < start:
                raise ValueError(f"the bytes of a tensor begin at {start}, expected {end}")
            end = stop
    except (TypeError, KeyError):
        raise ValueError("a tensor of its header has no place in the file") from None
    if end != num_bytes:
        raise ValueError(f"its tensors have {end:,} bytes, and the file has {num_bytes:,}")
