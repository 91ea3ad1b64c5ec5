"""What happened to the rows of a log, by reason."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

NO_UTF8 = "values that are no UTF-8, read as Windows-1252"


@dataclass
class Report:
    """Rows read, and what was dropped, repaired or only counted. Read = kept + dropped."""

    rows: int = 0
    """Rows read, broken ones among them; of sessions one a row, their interactions."""
    lines: int = 0
    """Of sequences."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that were left out, each under one reason."""
    repaired: Counter[str] = field(default_factory=Counter)
    """Values that were mended or set to missing; their rows stay."""
    counted: Counter[str] = field(default_factory=Counter)
    """What changes no row but should be known, such as empty files."""

    @property
    def counts(self) -> Counter[str]:
        """All three together."""
        return +(self.dropped + self.repaired + self.counted)

    def add(self, other: "Report") -> None:
        """Take over the counts of a part of the log."""
        self.rows += other.rows
        self.lines += other.lines
        self.dropped += other.dropped
        self.repaired += other.repaired
        self.counted += other.counted

    def facts(self, kept: int) -> dict[str, Any]:
        """For the manifest, where `kept` rows are left; reasons that never occurred stand not in.

        AssertionError if a row is neither kept nor counted as dropped.
        """
        lost = self.rows - kept - self.dropped.total()
        assert lost == 0, f"{lost} rows are not accounted for"  # noqa: S101
        found: dict[str, Any] = {"read": self.rows, "kept": kept}
        for name in ("dropped", "repaired", "counted"):
            counts = +getattr(self, name)
            if counts:
                found[name] = dict(counts)
        return found
