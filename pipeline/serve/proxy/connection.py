"""What the connections of both protocols share."""

import asyncio

CONNECT_SECONDS = 5
"""Time to connect to Triton."""


Address = tuple[str, int]
"""Host and port."""


class Side(asyncio.Protocol):
    """One side of a connection through the proxy; it reads no more while the other is slow."""

    transport: asyncio.Transport
    other: "Side | None" = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()
