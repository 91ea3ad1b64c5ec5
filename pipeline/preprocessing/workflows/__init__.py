"""A user's own NVTabular workflow: from a log to a data directory."""
