"""gRPC part of the proxy: frames of HTTP/2 pass as they are, whole messages after a check.

Each connection has one to Triton, so that headers need not be decoded: both sides keep their HPACK
tables. DATA of requests is collected until a message is whole; its flow control is the proxy's own,
as it may wait and get longer here. All other frames pass unchanged.
"""

import asyncio
import ssl
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.serve.proxy import http2
from pipeline.serve.proxy.connection import CONNECT_SECONDS, Address, Side
from pipeline.serve.proxy.experiment import Route, Router
from pipeline.serve.proxy.ranking_models import RankingModels
from pipeline.serve.proxy.request_checks import (
    MAX_BODY_BYTES,
    CheckedMessage,
    RefusedRequestError,
    check_message,
    for_model,
    inflate_message,
)
from pipeline.serve.request_log.exchange import Exchange
from pipeline.serve.triton.access import Tls

if TYPE_CHECKING:
    from pipeline.serve.request_log.request_log import RequestLog

INVALID_ARGUMENT = 3
_PREFIX = struct.Struct(">BL")
"""Before each message: whether it is compressed, and its size."""
_WINDOW_BYTES = 1 << 20
"""What a client may send beyond HTTP/2's first window before the proxy has read it."""


class GrpcProxy:
    """Passes connections on to the Triton at `address`."""

    def __init__(
        self,
        address: Address,
        models: RankingModels,
        router: Router,
        log: "RequestLog | None" = None,
    ) -> None:
        self.address = address
        self.models = models
        self.router = router
        self.log = log
        self._server: asyncio.Server
        self.connections: set[_Client] = set()

    async def start(self, host: str, port: int, tls: Tls | None) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        context = None if tls is None else _context(tls)
        self._server = await loop.create_server(
            lambda: _Client(self), host, port, ssl=context, backlog=1024
        )

    async def stop(self) -> None:
        """Close all connections."""
        self._server.close()
        for connection in list(self.connections):
            connection.close()


@dataclass
class _Stream:
    """Request of one call."""

    window: int
    """Bytes that Triton takes."""
    received: bytearray = field(default_factory=bytearray)
    """Beginning of a message."""
    waiting: bytearray = field(default_factory=bytearray)
    """Checked messages that Triton's window does not let through yet."""
    is_ended: bool = False
    """Whether the client has sent all."""
    has_headers: bool = False
    """Whether Triton has begun to answer."""
    debt: int = 0
    """Bytes from the client that it has not got back for its window."""
    num_messages: int = 0
    exchange: Exchange | None = None
    """What is to be logged: only of a call with one message."""


class _Triton(Side):
    """Connection to Triton."""

    def __init__(self, client: "_Client") -> None:
        self.other = self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.answer_received(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._client.close()


class _Client(Side):
    """Connection of a client, with its streams and the windows of Triton."""

    def __init__(self, proxy: GrpcProxy) -> None:
        self._proxy = proxy
        self._requests, self._answers = http2.FrameReader(), http2.FrameReader()
        self._preface = bytearray()
        self._streams: dict[int, _Stream] = {}
        self._window = self._first_window = http2.DEFAULT_WINDOW
        self._new_windows: deque[int] = deque()
        """First windows of Triton's settings that the client has not acknowledged."""
        self._debt = 0
        self._to_triton: list[bytes] = []
        self._to_client: list[bytes] = []
        self._is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._proxy.connections.add(self)
        self.transport.pause_reading()
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, self.other = await loop.create_connection(
                    lambda: _Triton(self), *self._proxy.address
                )
        except OSError:  # Triton is away: the client sees a connection that closes
            self.close()
            return
        if self.transport.is_closing():
            self.close()
        else:
            self.transport.resume_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        self.close()

    def close(self) -> None:
        """Close both sides."""
        self._proxy.connections.discard(self)
        self.transport.close()
        if self.other is not None:
            self.other.transport.close()

    def data_received(self, data: bytes) -> None:
        """Pass on what the client sends."""
        try:
            for frame in self._requests.feed(self._without_preface(data)):
                self._pass_request(frame)
        except http2.ProtocolError:
            self.close()
            return
        self._write()

    def answer_received(self, data: bytes) -> None:
        """Pass on what Triton sends."""
        try:
            for frame in self._answers.feed(data):
                self._pass_answer(frame)
        except http2.ProtocolError:
            self.close()
            return
        self._write()

    def _write(self) -> None:
        if self._to_triton and self.other is not None:
            self.other.transport.write(b"".join(self._to_triton))
            self._to_triton.clear()
        if self._to_client:
            self.transport.write(b"".join(self._to_client))
            self._to_client.clear()

    def _without_preface(self, data: bytes) -> bytes:
        missing = len(http2.PREFACE) - len(self._preface)
        if not missing:
            return data
        self._preface += data[:missing]
        if not http2.PREFACE.startswith(self._preface):
            raise http2.ProtocolError("no preface of HTTP/2")
        self._to_triton.append(data[:missing])
        return data[missing:]

    def _pass_request(self, frame: http2.Frame) -> None:
        if frame.kind == http2.DATA:
            self._take_data(frame)
            return
        if frame.kind == http2.HEADERS:
            if frame.stream not in self._streams:
                self._streams[frame.stream] = _Stream(self._first_window)
        elif frame.kind == http2.RESET:
            self._streams.pop(frame.stream, None)
        self._to_triton.append(frame.raw)
        if frame.kind == http2.SETTINGS and frame.flags & http2.ACK:
            self._apply_settings()

    def _pass_answer(self, frame: http2.Frame) -> None:
        if frame.kind == http2.WINDOW_UPDATE:
            self._widen(frame)
            return
        self._to_client.append(frame.raw)
        if frame.kind == http2.SETTINGS:
            self._take_settings(frame)
        elif frame.kind == http2.RESET or (
            frame.kind in (http2.DATA, http2.HEADERS) and frame.flags & http2.END_STREAM
        ):
            stream = self._streams.pop(frame.stream, None)
            if stream is not None and stream.exchange is not None:
                self._log(stream.exchange, frame)
        elif stream := self._streams.get(frame.stream):
            if frame.kind == http2.HEADERS:
                stream.has_headers = True
            elif frame.kind == http2.DATA and stream.exchange is not None:
                stream.exchange.answer += frame.payload

    def _log(self, exchange: Exchange, last: http2.Frame) -> None:
        """Log the request of a stream that ended with a frame of Triton."""
        assert self._proxy.log is not None  # noqa: S101
        if last.kind == http2.DATA:
            exchange.answer += last.payload
        if exchange.answer:
            self._proxy.log.put(exchange)

    def _take_data(self, frame: http2.Frame) -> None:
        """Collect DATA of a request, and pass on the messages that are whole."""
        if frame.flags & ~http2.END_STREAM:  # Triton's gRPC takes no padding either
            raise http2.ProtocolError("DATA with padding")
        self._credit(0, len(frame.payload))
        stream = self._streams.get(frame.stream)
        if stream is None:  # refused, or answered already
            return
        stream.received += frame.payload
        stream.debt += len(frame.payload)
        stream.is_ended = bool(frame.flags & http2.END_STREAM)
        try:
            while (whole := _next_message(stream.received)) is not None:
                stream.waiting += self._checked(stream, whole)
        except RefusedRequestError as error:
            self._refuse(frame.stream, stream, str(error))
            return
        self._flush(frame.stream, stream)

    def _checked(self, stream: _Stream, whole: bytes) -> bytes:
        """Return a message with its prefix, as Triton gets it."""
        message = whole[_PREFIX.size :]
        if whole[0]:
            message = inflate_message(message)
        checked = check_message(message, self._proxy.models)
        route = self._proxy.router.route(checked.model, checked.version, checked.session)
        stream.num_messages += 1
        stream.exchange = self._exchange(checked, route) if stream.num_messages == 1 else None
        content = checked.content
        if route.model is not None:
            content = for_model(content, route.model)
        if content is message:
            return whole
        return _PREFIX.pack(0, len(content)) + content

    def _exchange(self, checked: CheckedMessage, route: Route) -> Exchange | None:
        """Return what is to be logged of a request, None where it is not."""
        log = self._proxy.log
        if log is None or checked.model not in self._proxy.models or not log.wants(checked.session):
            return None
        return Exchange(
            "grpc", time.time_ns() // 1000, checked.session, checked.content, *route[1:]
        )

    def _credit(self, stream: int, size: int) -> None:
        """Let the client send as much again: at once for a stream, in large steps otherwise."""
        if stream == 0:
            self._debt += size
            if self._debt < _WINDOW_BYTES // 2:
                return
            size, self._debt = self._debt, 0
        if size:
            self._to_client.append(http2.write_window_update(stream, size))

    def _refuse(self, number: int, stream: _Stream, reason: str) -> None:
        del self._streams[number]
        self._to_triton.append(http2.write_reset(number))
        self._to_client.append(
            http2.write_status(number, INVALID_ARGUMENT, reason, has_headers=stream.has_headers)
        )

    def _flush(self, number: int, stream: _Stream) -> None:
        """Send what the windows of Triton take, and let the client go on when nothing waits."""
        size = max(0, min(len(stream.waiting), stream.window, self._window))
        is_last = size == len(stream.waiting)
        if size or (is_last and stream.is_ended):
            content = bytes(stream.waiting[:size])
            del stream.waiting[:size]
            stream.window -= size
            self._window -= size
            ends = is_last and stream.is_ended
            self._to_triton.append(http2.write_data(number, content, ends=ends))
        if is_last and not stream.is_ended:
            self._credit(number, stream.debt)
            stream.debt = 0

    def _widen(self, frame: http2.Frame) -> None:
        """Add to the windows of Triton."""
        size = http2.read_window_update(frame)
        if frame.stream == 0:
            self._window += size
            self._flush_waiting()
        elif stream := self._streams.get(frame.stream):
            stream.window += size
            if stream.waiting:
                self._flush(frame.stream, stream)

    def _take_settings(self, frame: http2.Frame) -> None:
        """Note the size of Triton's windows; its first settings open the connection."""
        if frame.flags & http2.ACK:
            return
        if not self._is_open:
            self._is_open = True
            self._to_client.append(http2.write_window_update(0, _WINDOW_BYTES))
        last = self._new_windows[-1] if self._new_windows else self._first_window
        self._new_windows.append(http2.read_settings(frame).get(http2.INITIAL_WINDOW_SIZE, last))

    def _apply_settings(self) -> None:
        """Change the windows of all streams once the client's acknowledgement is on its way."""
        if not self._new_windows:
            raise http2.ProtocolError("an acknowledgement without settings")
        size = self._new_windows.popleft()
        for stream in self._streams.values():
            stream.window += size - self._first_window
        self._first_window = size
        self._flush_waiting()

    def _flush_waiting(self) -> None:
        for number, stream in self._streams.items():
            if stream.waiting:
                self._flush(number, stream)


def _next_message(received: bytearray) -> bytes | None:
    """Take a message off the beginning, with its prefix; None until one is whole."""
    if len(received) < _PREFIX.size:
        return None
    _, size = _PREFIX.unpack_from(received)
    if size > MAX_BODY_BYTES:
        raise RefusedRequestError(f"the message has more than {MAX_BODY_BYTES} bytes.")
    stop = _PREFIX.size + size
    if len(received) < stop:
        return None
    whole = bytes(received[:stop])
    del received[:stop]
    return whole


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.cert, tls.key)
    context.set_alpn_protocols(["h2"])
    if tls.client_ca is not None:
        context.load_verify_locations(tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
