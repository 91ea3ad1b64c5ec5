"""Bounds of the proxy: what one request, one client and all of them together may cost."""

from dataclasses import dataclass

from pipeline.core.errors import ConfigError
from pipeline.serve.triton.access import MIN_RATE

SMALL_BYTES = 64 << 10
"""Largest body that is checked beside the other connections. A larger one, or one that inflates to
more, is checked in a process of its own; this much of each connection counts for no total."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one proxy; docs/concepts/proxy.md has them as a table."""

    max_body_bytes: int = 8 << 20
    """Largest body of HTTP and message of gRPC, both as it is sent and inflated."""
    max_buffered_bytes: int = 256 << 20
    """Bodies above `SMALL_BYTES` of all connections that the proxy has not passed on."""
    max_keys: int = 1_000
    """Most keys of a JSON object, for which Triton takes quadratic time, and most tensors and
    parameters of a message."""
    max_brackets: int = 200_000
    """Most objects and lists of a JSON, counted as brackets."""
    max_values: int = 1_000_000
    """Most values of a JSON, counted as commas: a thread of Triton that serves others reads it."""
    max_head_bytes: int = 64 << 10
    """Largest request line with headers, and largest block of headers of HTTP/2."""
    max_headers: int = 200
    """Most headers of a request over HTTP/1.1."""
    max_chunks: int = 10_000
    """Most chunks of a body over HTTP/1.1."""
    head_seconds: float = 10.0
    """Until the headers of a request are whole, from their first byte or the connection's begin."""
    body_seconds: float = 30.0
    """Until a body or message is whole, from the end of its headers or its first byte."""
    request_seconds: float = 60.0
    """Until a whole request is answered and its client has read the answer."""
    idle_seconds: float = 600.0
    """Time without a request after which a connection or a stream is closed."""
    max_connections: int = 1_000
    """Connections of each port; a further one closes one without a request."""
    max_streams: int = 128
    """Requests of one connection over gRPC at a time."""
    max_waiting: int = 500
    """Requests that wait for Triton; further ones are refused at once."""
    rate: float | None = None
    """Requests a second of one client, None for no bound."""

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_connections", "max_waiting", "request_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0.")
        if self.rate is not None and not MIN_RATE <= self.rate < float("inf"):
            raise ConfigError(
                f"rate is {self.rate}, expected at least {MIN_RATE} requests a second."
            )


DEFAULT_LIMITS = Limits()
