"""Reserved item indices and the names that the stages agree on."""

PADDING = 0
"""Fills a row up to the longest session of a batch."""
NULL = 1
"""A value that was missing."""
OUT_OF_VOCABULARY = 2
"""A value that training never saw."""
FIRST_ITEM = 3
"""Index of the most frequent item; the convention of NVTabular's Categorify."""

SESSION = "session_id"
"""Column of the session's raw id, kept for tracing rows back; no model reads it."""
ITEM = "item_id"
"""Column and feature of the item."""
TIMESTAMP = "timestamp"
"""Column of the moment of an interaction, in microseconds since 1970 UTC."""

SCHEMA_FILE = "schema.pbtxt"
FITTED_DIRECTORY = "fitted"
FITTED_FILE = "fitted.json"
SESSIONS_DIRECTORY = "sessions"
