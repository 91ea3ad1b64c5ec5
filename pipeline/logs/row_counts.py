"""Counts of the rows of a log: read, dropped and repaired, by reason."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LONGEST_EXAMPLE = 60
_NOTHING = "nothing"
"""Example of a missing value; any other example replaces it."""
NO_OBJECT = "lines that are no JSON object"
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
    """Other findings, such as empty files; they change no row."""

    examples: dict[str, str] = field(default_factory=dict)
    """First value and its row in the log, by reason."""

    @property
    def counts(self) -> Counter[str]:
        """Counts of all reasons that occurred."""
        return +(self.dropped + self.repaired + self.warnings)

    @property
    def sentences(self) -> list[str]:
        """One line per reason that occurred: count, reason and example."""
        return [describe(count, reason, self.examples) for reason, count in self.counts.items()]

    def add_example(self, reason: str, value: Any, row: int | None = None) -> None:
        """Keep the first example of a reason."""
        place = "" if row is None else f" in row {row:,}"
        text = _NOTHING if value is None else repr(value)
        text = text if len(text) <= _LONGEST_EXAMPLE else f"{text[:_LONGEST_EXAMPLE]}..."
        self.examples.setdefault(reason, f"{text}{place}")

    def add(self, other: "RowCounts") -> None:
        """Add the counts of another part of the log."""
        self.rows += other.rows
        self.lines += other.lines
        self.dropped += other.dropped
        self.repaired += other.repaired
        self.warnings += other.warnings
        for reason, text in other.examples.items():
            own = self.examples.setdefault(reason, text)
            if own.startswith(_NOTHING) and not text.startswith(_NOTHING):
                self.examples[reason] = text

    def facts(self, kept: int) -> dict[str, Any]:
        """Counts for the manifest; `kept` is the number of remaining rows.

        AssertionError if a row is neither kept nor dropped.
        """
        lost = self.rows - kept - self.dropped.total()
        assert lost == 0, f"{lost} rows are not accounted for"  # noqa: S101
        groups = {"dropped": self.dropped, "repaired": self.repaired, "counted": self.warnings}
        reasons: dict[str, Any] = {
            name: dict(+counts) for name, counts in groups.items() if +counts
        }
        if self.examples:
            reasons["examples"] = self.examples
        return {"read": self.rows, "kept": kept, **reasons}


def describe(count: int, reason: str, examples: Mapping[str, str]) -> str:
    """Count, reason and example as one line."""
    example = f" (such as {examples[reason]})" if reason in examples else ""
    return f"{count:,} {reason}{example}"
