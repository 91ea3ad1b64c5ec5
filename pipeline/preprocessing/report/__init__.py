"""Report of a data directory: rows, sessions, columns, and drift between its parts."""
