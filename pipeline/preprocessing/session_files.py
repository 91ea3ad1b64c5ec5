"""Parquet files of sessions, in row groups of one size."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.columns import SESSION, TIMESTAMP

_ROW_GROUP_SESSIONS = 65_536
"""Sessions of a row group, the unit of reading."""


class SessionWriter:
    """Writes `part-0.parquet` in a new directory; the bytes do not depend on the cuts between
    tables."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._path = directory / "part-0.parquet"
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []

    def write(self, sessions: pa.Table) -> None:
        """Append encoded sessions."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path, sessions.schema, use_dictionary=_dictionary_columns(sessions.schema)
            )
        self._pending.append(sessions)
        if sum(part.num_rows for part in self._pending) >= _ROW_GROUP_SESSIONS:
            table = pa.concat_tables(self._pending)
            num_whole = table.num_rows - table.num_rows % _ROW_GROUP_SESSIONS
            self._writer.write_table(table.slice(0, num_whole), row_group_size=_ROW_GROUP_SESSIONS)
            self._pending = [table.slice(num_whole)]

    def close(self) -> None:
        """Write the last row group."""
        assert self._writer is not None  # noqa: S101  a part has at least one session
        rest = pa.concat_tables(self._pending)
        if rest.num_rows:
            self._writer.write_table(rest)
        self._writer.close()


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """Parquet paths of all columns except ids and times of sessions.

    Ids and times have few equal values, so a dictionary would cost time and space.
    """
    return [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in schema
        if field.name not in (SESSION, TIMESTAMP)
    ]
