"""What all connections of a proxy share: counts that are bounded, and a line where a bound holds.

Everything runs in the thread of the proxy.
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
"""After how long a client that was refused for load may ask again."""
BURST_SECONDS = 2
_MAX_CLIENTS = 100_000
"""Clients whose requests are counted; all begin anew where there are more."""
_QUIET_SECONDS = 60
"""Interval between two lines about the same bound."""
logger = logging.getLogger(__name__)


class Evictable(Protocol):
    """Connection of a client as `Connections` reads it."""

    peer: str
    """Address of the client."""
    since: float
    """Time of its last answered request, or of its begin."""

    @property
    def is_busy(self) -> bool:
        """Return whether a request of it waits for an answer."""

    def expire(self, now: float) -> None:
        """Close what has taken too long."""

    def close(self) -> None:
        """Close the connection."""


class Admission:
    """Counts of one proxy, over both of its ports."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.num_waiting = 0
        """Requests that Triton has not begun to answer."""
        self.buffered_bytes = 0
        """Bytes of requests that are not passed on, above `SMALL_BYTES` of each."""
        self.had_large = False
        """Whether there was a large request since this was last set to False."""
        self._logged: dict[str, float] = {}
        self._buckets: dict[str, tuple[float, float]] = {}
        """Requests that a client may send at once, and when this was so."""

    def charge(self, address: str, key: ClientKey | None = None) -> None:
        """Count a request of a client. RefusedRequestError where it sends too many a second.

        Clients with one key are one, those without a key are one by address. A client
        that was silent may send as many at once as in `BURST_SECONDS`.
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
        """Count a request for Triton. RefusedRequestError where too many wait.

        Those of streams take half of the places, as a client can leave their answers unread.
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
        """Count a request off that Triton begins to answer, or that is gone."""
        self.num_waiting -= 1

    def buffer(self, before: int, after: int) -> None:
        """Count the bytes that a request holds. RefusedRequestError where they are too many."""
        change = max(0, after - SMALL_BYTES) - max(0, before - SMALL_BYTES)
        self.buffered_bytes += change
        self.had_large = self.had_large or change > 0
        if change > 0 and self.buffered_bytes > self.limits.max_buffered_bytes:
            self.log("bytes", "large requests fill the memory for them; more are refused")
            raise RefusedRequestError(
                "too many large requests at a time. Ask later.", 503, retry_seconds=RETRY_SECONDS
            )

    def log(self, bound: str, line: str) -> None:
        """Log that a bound holds, at most once a minute."""
        now = time.monotonic()
        if now - self._logged.get(bound, -_QUIET_SECONDS) >= _QUIET_SECONDS:
            if len(self._logged) >= _MAX_CLIENTS:
                self._logged.clear()
            self._logged[bound] = now
            logger.warning("Warning: %s.", line)


class Connections:
    """Connections of one port; where there are too many, one without a request is closed.

    It is one of the client address that has the most, the one whose last request is longest ago.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._open: dict[Evictable, None] = {}

    def __iter__(self) -> Iterator[Evictable]:
        return iter(list(self._open))

    def add(self, connection: Evictable) -> None:
        """Add a connection, and close another where there are too many."""
        limit = self._admission.limits.max_connections
        if len(self._open) >= limit:
            self._admission.log("connections", f"{limit} connections are open; idle ones close")
            self._evict()
        self._open[connection] = None

    def discard(self, connection: Evictable) -> None:
        """Remove a connection that is closed."""
        self._open.pop(connection, None)

    def expire(self, now: float) -> None:
        """Close what has taken too long."""
        for connection in self:
            try:
                connection.expire(now)
            except Exception:  # of one connection, which must not end the others
                logger.exception("A connection is closed")
                connection.close()

    def _evict(self) -> None:
        idle = [connection for connection in self._open if not connection.is_busy]
        if not idle:  # more than requests may wait: cannot be, unless the options say so
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
    """Return what tells clients apart: their key, or without keys their address."""
    return address if key is None else f"the key {key.name}"
