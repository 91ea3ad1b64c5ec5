"""Options of a request log."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import ConfigError

EXPERIMENT_KEY = b"pipeline.experiment"
"""Metadata of a file: the experiment that ran, as JSON."""


@dataclass(frozen=True, kw_only=True)
class RequestLogOptions:
    """Where requests are logged, and which."""

    directory: Path
    share: float = 1.0
    """Share of the sessions whose requests are logged, of requests without a session each."""
    rotate_seconds: float = 60.0
    """Longest time that a row waits to be written: what a killed server loses."""
    rotate_bytes: int = 32 << 20
    """Size of a file in memory at which it is written before that time."""
    max_queued: int = 1_000
    max_queued_bytes: int = 64 << 20
    metadata: dict[bytes, bytes] = field(default_factory=dict)
    """Of each file."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"--log-share is {self.share:g}, expected above 0, up to 1.")
