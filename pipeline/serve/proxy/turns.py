"""Fair lock for a resource that serves one request at a time."""

import asyncio
from collections import deque


class Turns:
    """Lock that clients hold in turn: each waits for at most one request of every other client."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Waiting requests by client; the client whose turn is next comes first."""
        self._is_held = False

    async def acquire(self, client: str) -> None:
        """Wait for a turn of `client`. The lock is then held until `release`."""
        if not self._is_held:
            self._is_held = True
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():  # it holds the lock already
                self.release()
            raise

    def release(self) -> None:
        """Pass the lock to the next client, which moves to the end of the round."""
        while self._waiting:
            client = next(iter(self._waiting))
            requests = self._waiting.pop(client)
            future = requests.popleft()
            if requests:
                self._waiting[client] = requests
            if not future.done():
                future.set_result(None)
                return
        self._is_held = False
