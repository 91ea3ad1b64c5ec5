"""Indices that categories share which have none of their own."""

import zlib

from pipeline.core.columns import FIRST_ITEM


def bucket_of(text: str, hash_buckets: int) -> int:
    """Index of a value, as text, by its CRC-32, which is the same on every machine."""
    return FIRST_ITEM + zlib.crc32(text.encode("utf-8")) % hash_buckets
