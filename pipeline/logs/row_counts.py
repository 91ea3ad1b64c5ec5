"""Counts of the rows of a log: read, dropped and repaired, by reason."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

NO_UTF8 = "values that are no UTF-8, read as Windows-1252"


@dataclass
class RowCounts:
    """Rows read, dropped and repaired, and further warnings. Read = kept + dropped."""

    rows: int = 0
    """Rows read, damaged ones included; interactions if a row is a session."""
    lines: int = 0
    """Lines read of logs with `format: sequences`."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows dropped, each under one reason."""
    repaired: Counter[str] = field(default_factory=Counter)
    """Values changed or set to missing; their rows are kept."""
    warnings: Counter[str] = field(default_factory=Counter)
    """Other oddities, such as empty files; they change no row."""

    @property
    def counts(self) -> Counter[str]:
        """Counts of all reasons that occurred."""
        return +(self.dropped + self.repaired + self.warnings)

    def add(self, other: "RowCounts") -> None:
        """Add the counts of another part of the log."""
        self.rows += other.rows
        self.lines += other.lines
        self.dropped += other.dropped
        self.repaired += other.repaired
        self.warnings += other.warnings

    def facts(self, kept: int) -> dict[str, Any]:
        """Counts for the manifest; `kept` is the number of rows left.

        AssertionError if a row is neither kept nor dropped.
        """
        lost = self.rows - kept - self.dropped.total()
        assert lost == 0, f"{lost} rows are not accounted for"  # noqa: S101
        groups = {"dropped": self.dropped, "repaired": self.repaired, "counted": self.warnings}
        reasons = {name: dict(+counts) for name, counts in groups.items() if +counts}
        return {"read": self.rows, "kept": kept, **reasons}
