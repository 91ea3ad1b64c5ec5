"""Common classes of the connections of both protocols."""

import asyncio

CONNECT_SECONDS = 5
"""Time to connect to Triton."""


Address = tuple[str, int]
"""Host and port."""


class Side(asyncio.Protocol):
    """One side of a connection through the proxy; it pauses reading while the other is slow."""

    transport: asyncio.Transport
    other: "Side | None" = None
    peer = ""

    def __init__(self) -> None:
        self._held: set[str] = set()
        """Reasons not to read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        address = transport.get_extra_info("peername")
        self.peer = str(address[0]) if address else ""

    def hold(self, reason: str) -> None:
        """Pause reading until each reason is released."""
        if not self._held:
            self.transport.pause_reading()
        self._held.add(reason)

    def release(self, reason: str) -> None:
        """Resume reading if no other reason is left."""
        if reason in self._held:
            self._held.discard(reason)
            if not self._held:
                self.transport.resume_reading()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.hold("other")

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.release("other")


class ClientSide(Side):
    """Side of a client. Reading pauses while the client does not read its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.since = asyncio.get_running_loop().time()
        """Time of the last answered request, or of the connection's start."""
        self.is_slow = False
        """Whether the client does not read its answers."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self.is_slow = True
        self.hold("own")

    def resume_writing(self) -> None:
        super().resume_writing()
        self.is_slow = False
        self.release("own")
