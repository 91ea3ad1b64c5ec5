"""Reserved indices, and names of columns, files and models, that all stages share."""

import zlib

PADDING = 0
"""Index that pads a row to the longest session of a batch."""
NULL = 1
"""Index of a missing value."""
OUT_OF_VOCABULARY = 2
"""Index of a value that is not in the vocabulary."""
FIRST_ITEM = 3
"""Index of the most frequent item, as NVTabular's Categorify assigns it."""

SESSION = "session_id"
"""Column of the raw session id; no model reads it."""
ITEM = "item_id"
"""Column and feature of the item id."""
TIMESTAMP = "timestamp"
"""Column of the time of an interaction, in microseconds since 1970 UTC."""
ORDER = "order."
"""Prefix of further columns that order interactions; no feature has a dot in its name."""
SPLIT = "split."
"""Column of the part or the user of a session; no feature has a dot in its name."""
ELAPSED = "elapsed"
"""Feature: logarithm of the seconds since the previous interaction, standardized."""

SCHEMA_FILE = "schema.pbtxt"
FITTED_DIRECTORY = "fitted"
FITTED_FILE = "fitted.json"
SESSIONS_DIRECTORY = "sessions"


def bucket_of(text: str, hash_buckets: int) -> int:
    """Index of the hash bucket of a value, by the CRC-32 of its text (equal on every machine)."""
    return FIRST_ITEM + zlib.crc32(text.encode("utf-8")) % hash_buckets


def version_alias(name: str, version: int | str) -> str:
    """Return the name of the ensemble by which a server offers one kept version of `name`.

    It shares its step with the ensemble `name`, so it needs no instance of its own.
    """
    return f"{name}_v{version}"
