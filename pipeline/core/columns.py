"""Reserved indices, and names of columns, files and models, that all stages share."""

import zlib

PADDING = 0
"""Fills a row up to the longest session of a batch."""
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
ORDER = "order."
"""Beginning of the names of further columns of the order; no feature has a dot in its name."""
"""Column of the time of an interaction, in microseconds since 1970 UTC."""
SPLIT = "split."
"""Column that says which part a session belongs to, or whose it is; no feature ends in a dot."""
ELAPSED = "elapsed"
"""Feature of the logarithm of the seconds since the interaction before, standardized."""

SCHEMA_FILE = "schema.pbtxt"
FITTED_DIRECTORY = "fitted"
FITTED_FILE = "fitted.json"
SESSIONS_DIRECTORY = "sessions"


def bucket_of(text: str, hash_buckets: int) -> int:
    """Index of the hash bucket of a value, by the CRC-32 of its text (equal on every machine)."""
    return FIRST_ITEM + zlib.crc32(text.encode("utf-8")) % hash_buckets


def version_alias(name: str, version: int | str) -> str:
    """Return the name under which a server has one version of `name`, as long as it is kept.

    It is a second ensemble of the same step, which costs no instance.
    """
    return f"{name}_v{version}"
