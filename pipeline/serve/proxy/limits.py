"""Bounds of the proxy for one request, one client and all clients together."""

from dataclasses import dataclass

from pipeline.core.errors import ConfigError
from pipeline.serve.triton.access import MIN_RATE

SMALL_BYTES = 64 << 10
"""Largest body that is checked in the proxy's thread. A larger one, also after decompression, is
checked in a process of its own. These bytes of each connection do not count as buffered."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one proxy; docs/concepts/proxy.md has them as a table."""

    max_body_bytes: int = 8 << 20
    """Largest HTTP body and gRPC message, before and after decompression."""
    max_buffered_bytes: int = 256 << 20
    """Largest total of bodies above `SMALL_BYTES` that the proxy has not forwarded."""
    max_keys: int = 1_000
    """Largest number of keys of a JSON object, for which Triton takes quadratic time, and of
    tensors and parameters of a message."""
    max_brackets: int = 200_000
    """Largest number of objects and lists in JSON, counted as brackets."""
    max_values: int = 1_000_000
    """Largest number of values in JSON, counted as commas: parsing blocks a thread of Triton."""
    max_head_bytes: int = 64 << 10
    """Largest request line with headers, and largest block of headers of HTTP/2."""
    max_headers: int = 200
    """Largest number of headers of a request over HTTP/1.1."""
    max_chunks: int = 10_000
    """Largest number of chunks of a body over HTTP/1.1."""
    head_seconds: float = 10.0
    """Time for the headers of a request, from their first byte or the start of the connection."""
    body_seconds: float = 30.0
    """Time for a body or message, from the end of its headers or its first byte."""
    request_seconds: float = 60.0
    """Time from a complete request until its client has read the answer."""
    idle_seconds: float = 600.0
    """Time without a request after which a connection or a stream is closed."""
    max_connections: int = 1_000
    """Connections of each port; a further one closes an idle one."""
    max_streams: int = 128
    """Concurrent requests of one gRPC connection."""
    max_waiting: int = 500
    """Requests that wait for Triton; further ones are refused at once."""
    rate: float | None = None
    """Largest number of requests a second of one client, None for no bound."""

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_connections", "max_waiting", "request_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0.")
        if self.rate is not None and not MIN_RATE <= self.rate < float("inf"):
            raise ConfigError(
                f"rate is {self.rate}, expected at least {MIN_RATE} requests a second."
            )


DEFAULT_LIMITS = Limits()
