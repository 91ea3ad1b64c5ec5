"""Options of a request log."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import ConfigError

EXPERIMENT_KEY = b"pipeline.experiment"
"""Key of a file's metadata: the experiment as JSON."""


@dataclass(frozen=True, kw_only=True)
class RequestLogOptions:
    """Directory and sample of a request log."""

    directory: Path
    share: float = 1.0
    """Share of the sessions, or of requests without a session, that are logged."""
    rotate_seconds: float = 60.0
    """Longest time before a row is written, which is the loss if the server is killed."""
    rotate_bytes: int = 32 << 20
    """Size of a file in memory at which it is written earlier."""
    max_queued: int = 1_000
    max_queued_bytes: int = 64 << 20
    metadata: dict[bytes, bytes] = field(default_factory=dict)
    """Metadata of each file."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"--log-share is {self.share:g}, expected above 0, up to 1.")
