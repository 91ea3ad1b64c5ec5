"""Admission control of all connections of a proxy: bounded counts, and log lines about refusals.

All code runs in the thread of the proxy.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from pipeline.serve.proxy.limits import SMALL_BYTES, Limits
from pipeline.serve.proxy.request_checks import RefusedRequestError
from pipeline.serve.triton.access import ClientKey

RETRY_SECONDS = 1
"""Seconds after which a client that was refused for load may retry."""
BURST_SECONDS = 2
_MAX_CLIENTS = 100_000
"""Largest number of clients whose requests are counted; above it all counts are reset."""
_QUIET_SECONDS = 60
"""Interval between two lines about the same bound."""
logger = logging.getLogger(__name__)


class Evictable(Protocol):
    """Connection of a client that `Connections` can close."""

    peer: str
    """Address of the client."""
    since: float
    """Time of its last answered request, or of its start."""

    @property
    def is_busy(self) -> bool:
        """Whether one of its requests waits for an answer."""

    def expire(self, now: float) -> None:
        """Refuse requests and close the connection if they have taken too long."""

    def close(self) -> None:
        """Close the connection."""


class Admission:
    """Counts of one proxy, over both of its ports."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.num_waiting = 0
        """Number of requests that Triton has not begun to answer."""
        self.buffered_bytes = 0
        """Bytes of requests that are not forwarded yet, above `SMALL_BYTES` of each."""
        self.had_large = False
        """Whether there was a large request since the last reset to False."""
        self._logged: dict[str, float] = {}
        self._buckets: dict[str, tuple[float, float]] = {}
        """Token bucket of each client: requests that it may send at once, and the time of that."""

    def charge(self, address: str, key: ClientKey | None = None) -> None:
        """Count a request of a client. RefusedRequestError if it sends too many a second.

        A client is identified by its key, or by its address without one. After a pause it may send
        the requests of `BURST_SECONDS` at once.
        """
        client = client_name(address, key)
        rate = self.limits.rate if key is None or key.rate is None else key.rate
        if rate is None:
            return
        now, most = time.monotonic(), max(1.0, rate * BURST_SECONDS)
        left, then = self._buckets.get(client, (most, now))
        left = min(most, left + (now - then) * rate)
        if left < 1:
            self.log(f"rate {client}", f"{client} sends more than {rate:g} requests a second")
            seconds = math.ceil((1 - left) / rate)
            raise RefusedRequestError(
                f"more than {rate:g} requests a second. Ask again later.",
                429,
                retry_seconds=seconds,
            )
        if len(self._buckets) >= _MAX_CLIENTS:
            self._buckets.clear()
        self._buckets[client] = (left - 1, now)

    def begin_request(self, *, is_streamed: bool = False) -> None:
        """Count a request for Triton. RefusedRequestError if too many wait.

        Requests of streams may take half of the limit, as a client can leave their answers unread.
        """
        bound = self.limits.max_waiting // 2 if is_streamed else self.limits.max_waiting
        if self.num_waiting >= max(1, bound):
            self.log("waiting", f"{self.num_waiting} requests wait for Triton; more are refused")
            raise RefusedRequestError(
                f"{self.num_waiting} requests wait already. Ask later.",
                503,
                retry_seconds=RETRY_SECONDS,
            )
        self.num_waiting += 1

    def end_request(self) -> None:
        """Remove a request from the count when Triton begins to answer it or it is aborted."""
        self.num_waiting -= 1

    def buffer(self, before: int, after: int) -> None:
        """Count the bytes that a request holds. RefusedRequestError if all hold too many."""
        change = max(0, after - SMALL_BYTES) - max(0, before - SMALL_BYTES)
        self.buffered_bytes += change
        self.had_large = self.had_large or change > 0
        if change > 0 and self.buffered_bytes > self.limits.max_buffered_bytes:
            self.log("bytes", "large requests fill the memory for them; more are refused")
            raise RefusedRequestError(
                "too many large requests at a time. Ask later.", 503, retry_seconds=RETRY_SECONDS
            )

    def log(self, bound: str, line: str) -> None:
        """Log that a bound is reached, at most once a minute."""
        now = time.monotonic()
        if now - self._logged.get(bound, -_QUIET_SECONDS) >= _QUIET_SECONDS:
            if len(self._logged) >= _MAX_CLIENTS:
                self._logged.clear()
            self._logged[bound] = now
            logger.warning("Warning: %s.", line)


class Connections:
    """Connections of one port; above the limit, one without a request is closed.

    It is the least recently used one of the address with the most idle connections.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._open: dict[Evictable, None] = {}

    def __iter__(self) -> Iterator[Evictable]:
        return iter(list(self._open))

    def add(self, connection: Evictable) -> None:
        """Add a connection, and close another one at the limit."""
        limit = self._admission.limits.max_connections
        if len(self._open) >= limit:
            self._admission.log("connections", f"{limit} connections are open; idle ones close")
            self._evict()
        self._open[connection] = None

    def discard(self, connection: Evictable) -> None:
        """Remove a closed connection."""
        self._open.pop(connection, None)

    def expire(self, now: float) -> None:
        """Call `expire` of each connection."""
        for connection in self:
            try:
                connection.expire(now)
            except Exception:  # one connection must not end the others
                logger.exception("A connection is closed")
                connection.close()

    def _evict(self) -> None:
        idle = [connection for connection in self._open if not connection.is_busy]
        if not idle:  # only if more requests than connections may wait
            idle = list(self._open)
        counts = Counter(connection.peer for connection in idle)
        most = max(counts.values())
        victim = min(
            (connection for connection in idle if counts[connection.peer] == most),
            key=lambda connection: connection.since,
        )
        self.discard(victim)
        victim.close()


def client_name(address: str, key: ClientKey | None) -> str:
    """Return the name of a client: that of its key, or its address without keys."""
    return address if key is None else f"the key {key.name}"
