"""gRPC part of the proxy: forwards messages after a check, and other frames of HTTP/2 unchanged.

Each client connection has one connection to Triton. Headers of requests are decoded, and encoded
without a table, so that Triton sees nothing of a refused request; headers of answers are forwarded
unchanged, with Triton's table. DATA of requests is collected until a message is complete; its flow
control is that of the proxy, where messages may wait and grow.
"""

import asyncio
import ssl
import time
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from pipeline.serve.proxy import http2
from pipeline.serve.proxy.admission import Admission, Connections, client_name
from pipeline.serve.proxy.calls import Calls
from pipeline.serve.proxy.check_process import CheckProcess
from pipeline.serve.proxy.connection import CONNECT_SECONDS, Address, ClientSide, Side
from pipeline.serve.proxy.experiment import Route, Router
from pipeline.serve.proxy.frame_allowance import FrameAllowance
from pipeline.serve.proxy.grpc_headers import GrpcHeaderReader, TritonKey
from pipeline.serve.proxy.grpc_streams import PREFIX, GrpcStream, GrpcStreams
from pipeline.serve.proxy.limits import SMALL_BYTES
from pipeline.serve.proxy.ranking_models import RankingModels
from pipeline.serve.proxy.request_checks import (
    CheckedMessage,
    LargeContentError,
    RefusedRequestError,
    check_message,
    for_model,
    inflate_message,
)
from pipeline.serve.request_log.exchange import Exchange
from pipeline.serve.triton.access import Tls

if TYPE_CHECKING:
    from pipeline.serve.request_log.request_log import RequestLog

_CODES = {400: 3, 403: 14, 404: 12, 408: 4, 413: 3, 429: 8, 503: 8, 504: 4}
"""gRPC status by HTTP status: INVALID_ARGUMENT, UNAVAILABLE (as Triton's for closed calls),
UNIMPLEMENTED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED."""
_WINDOW_BYTES = 1 << 20
"""Bytes that a client may send beyond HTTP/2's initial window before the proxy has read them."""


class GrpcProxy:
    """Forwards connections to the Triton at `address`."""

    def __init__(
        self,
        address: Address,
        models: RankingModels,
        router: Router,
        calls: Calls,
        triton_key: str | None,
        admission: Admission,
        checks: CheckProcess,
        log: "RequestLog | None" = None,
    ) -> None:
        self.address = address
        self.models = models
        self.router = router
        self.calls = calls
        self.triton_key = TritonKey(triton_key, hides_keys=calls.has_keys)
        self.admission = admission
        self.checks = checks
        self.log = log
        self._server: asyncio.Server
        self.connections = Connections(admission)

    async def start(self, host: str, port: int, tls: Tls | None) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        context = None if tls is None else _context(tls)
        seconds = None if tls is None else self.admission.limits.head_seconds
        self._server = await loop.create_server(
            lambda: _Client(self), host, port, ssl=context, backlog=1024,
            ssl_handshake_timeout=seconds,
        )  # fmt: skip

    async def stop(self) -> None:
        """Close all connections."""
        self._server.close()
        for connection in self.connections:
            connection.close()


class _Triton(Side):
    """Connection to Triton."""

    def __init__(self, client: "_Client") -> None:
        super().__init__()
        self.other = self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.answer_received(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._client.close_when_written()


class _Client(ClientSide):
    """Connection of a client, with its streams and the windows of Triton."""

    def __init__(self, proxy: GrpcProxy) -> None:
        super().__init__()
        self._proxy = proxy
        self._limits = limits = proxy.admission.limits
        self._loop = asyncio.get_running_loop()
        self._requests = http2.FrameReader(limits.max_head_bytes)
        self._headers = GrpcHeaderReader(limits.max_head_bytes, proxy.triton_key)
        self._answers = http2.FrameReader(1 << 24, 1 << 24)
        self._preface = bytearray()
        self._streams = GrpcStreams(proxy.admission)
        self._debt = 0
        self._to_triton: list[bytes] = []
        self._to_client: list[bytes] = []
        self._is_open = self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._allowance = FrameAllowance(proxy.admission, self._loop.time)
        self._part_since = self._slow_since = self.since

    @property
    def is_busy(self) -> bool:
        """Whether a request waits for its answer, and not for the client."""
        return not self.is_slow and self._streams.are_busy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._proxy.connections.add(self)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, self.other = await self._loop.create_connection(
                    lambda: _Triton(self), *self._proxy.address
                )
        except OSError:  # Triton is unavailable: the connection of the client closes
            self.close()
            return
        if self._is_closed:
            self.other.transport.abort()
        else:
            self.release("connecting")
            self._write()

    def connection_lost(self, _error: Exception | None) -> None:
        self.close()

    def close(self) -> None:
        """Close both sides at once."""
        self._forget()
        self.transport.abort()

    def close_when_written(self) -> None:
        """Close both sides once the client has read all answers, or after a time-out."""
        self._forget()
        self.transport.close()
        self._loop.call_later(self._limits.head_seconds, self.transport.abort)

    def _forget(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._proxy.connections.discard(self)
        self._streams.close_all()
        for task in self._tasks:
            task.cancel()
        if self.other is not None:
            self.other.transport.close()

    def expire(self, now: float) -> None:
        """Refuse requests that take too long, and close a connection that waits too long."""
        limits = self._limits
        for number in self._streams.late(now):
            self._refuse(number, RefusedRequestError("the request took too long", 504))
        self._write()
        has_part = self._requests.has_part or len(self._preface) < len(http2.PREFACE)
        if (
            (has_part and now - self._part_since > limits.head_seconds)
            or (self.is_slow and now - self._slow_since > limits.request_seconds)
            or (not self._streams and now - self.since > limits.idle_seconds)
        ):
            self.close_when_written()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._slow_since = self._loop.time()

    def data_received(self, data: bytes) -> None:
        """Forward data of the client."""
        if self._is_closed:
            return
        is_new = not self._requests.has_part
        try:
            for frame in self._requests.feed(self._without_preface(data)):
                is_new = True
                self._pass_request(frame)
        except http2.ProtocolError:
            self.close()
            return
        if is_new and len(self._preface) == len(http2.PREFACE):
            self._part_since = self._loop.time()
        self._write()

    def answer_received(self, data: bytes) -> None:
        """Forward data of Triton."""
        if self._is_closed:
            return
        try:
            for frame in self._answers.feed(data):
                self._pass_answer(frame)
        except http2.ProtocolError:
            self.close()
            return
        self._write()

    def _write(self) -> None:
        if self._is_closed:
            return
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
        if len(self._preface) == len(http2.PREFACE):
            self.hold("connecting")
            self._start(self._connect())
        return data[missing:]

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _pass_request(self, frame: http2.Frame) -> None:
        self._allowance.spend_frame(frame)
        if frame.kind == http2.DATA:
            self._take_data(frame)
            return
        if frame.kind == http2.HEADERS:
            self._take_headers(frame)
            return
        if frame.kind == http2.RESET:
            self._streams.close(frame.stream)
        self._to_triton.append(frame.raw)
        if frame.kind == http2.SETTINGS and frame.flags & http2.ACK:
            self._flush_all(self._streams.acknowledge())

    def _take_headers(self, frame: http2.Frame) -> None:
        """Begin a request, or refuse it before Triton sees it."""
        if frame.stream in self._streams:
            raise http2.ProtocolError("headers after those of the request")
        block = frame.header_block
        self._allowance.spend_headers(block)
        headers = self._headers.read(block)
        try:
            call = self._proxy.calls.check_grpc(headers.path, headers.key)
        except RefusedRequestError as error:
            self._allowance.spend_refusal()
            status = http2.write_status(
                frame.stream, _CODES[error.status], str(error), has_headers=False
            )
            self._to_client.append(status)
            return
        if len(self._streams) >= self._limits.max_streams:
            self._allowance.spend_refusal()
            self._to_client.append(http2.write_reset(frame.stream, http2.REFUSED_STREAM))
            return
        ends = bool(frame.flags & http2.END_STREAM)
        self._to_triton.append(http2.write_headers(frame.stream, headers.block, ends=ends))
        deadline = self._loop.time() + self._limits.idle_seconds
        self._streams.open(frame.stream, deadline, call)

    def _pass_answer(self, frame: http2.Frame) -> None:
        if frame.kind == http2.WINDOW_UPDATE:
            self._flush_all(self._streams.widen(frame))
            return
        if frame.kind == http2.SETTINGS:
            self._take_settings(frame)
            return
        self._to_client.append(frame.raw)
        if frame.kind == http2.RESET or (
            frame.kind in (http2.DATA, http2.HEADERS) and frame.flags & http2.END_STREAM
        ):
            stream = self._streams.close(frame.stream)
            self._allowance.earn_answer()
            self.since = self._loop.time()
            if stream is not None and stream.exchange is not None:
                self._log(stream.exchange, frame)
        elif stream := self._streams.get(frame.stream):
            if frame.kind == http2.HEADERS:
                stream.has_headers = True
                if stream.is_ended:
                    self._streams.count_answers(stream, stream.num_waiting)
            elif frame.kind == http2.DATA:
                self._take_answer(stream, frame)

    def _take_answer(self, stream: GrpcStream, frame: http2.Frame) -> None:
        """Count the messages of an answer, and keep them for the request log."""
        self._allowance.earn_data()
        if stream.exchange is not None:
            stream.exchange.answer += frame.payload
        if num_answers := stream.answers.feed(frame.payload):
            self._streams.count_answers(stream, num_answers)
            if not stream.num_waiting and not stream.is_ended:
                stream.deadline = self._loop.time() + self._limits.idle_seconds

    def _log(self, exchange: Exchange, last: http2.Frame) -> None:
        """Log the request of a stream that ended with a frame of Triton."""
        assert self._proxy.log is not None  # noqa: S101
        if last.kind == http2.DATA:
            exchange.answer += last.payload
        if exchange.answer:
            self._proxy.log.put(exchange)

    def _take_data(self, frame: http2.Frame) -> None:
        """Collect DATA of a request, and forward complete messages."""
        if frame.flags & ~http2.END_STREAM:  # Triton's gRPC refuses padding too
            raise http2.ProtocolError("DATA with padding")
        self._credit(0, len(frame.payload))
        stream = self._streams.get(frame.stream)
        if stream is None:  # refused or answered
            return
        if not stream.received:
            stream.deadline = self._loop.time() + self._limits.body_seconds
        stream.received += frame.payload
        stream.debt += len(frame.payload)
        stream.is_ended = bool(frame.flags & http2.END_STREAM)
        self._read_messages(frame.stream, stream)

    def _read_messages(self, number: int, stream: GrpcStream) -> None:
        """Check complete messages, and send what Triton's windows allow."""
        try:
            while not stream.is_checking:
                whole = stream.next_message(self._limits.max_body_bytes)
                if whole is None:
                    break
                try:
                    checked = self._checked(whole)
                except LargeContentError:
                    if not stream.call.runs_model:
                        raise RefusedRequestError("this call takes no such message") from None
                    stream.num_checked = len(whole)
                    stream.check = self._start(self._check_elsewhere(number, stream, whole))
                else:
                    stream.waiting += self._for_triton(stream, whole, checked)
            self._streams.count_bytes(stream)
        except RefusedRequestError as error:
            self._refuse(number, error)
            return
        self._flush(number, stream)

    def _checked(self, whole: bytes) -> CheckedMessage:
        """Check a message with its prefix. LargeContentError for a large one."""
        message = whole[PREFIX.size :]
        if len(message) > SMALL_BYTES:
            raise LargeContentError
        if whole[0]:
            message = inflate_message(message, self._limits.max_body_bytes, SMALL_BYTES)
        return check_message(message, self._proxy.models, self._limits)

    async def _check_elsewhere(self, number: int, stream: GrpcStream, whole: bytes) -> None:
        """Check a large message in the check process, then continue its stream."""
        try:
            try:
                checked = await self._proxy.checks.check_message(
                    client_name(self.peer, stream.call.key),
                    whole[PREFIX.size :],
                    is_compressed=bool(whole[0]),
                    models=sorted(self._proxy.models.names()),
                )
            finally:
                stream.check, stream.num_checked = None, 0
            stream.waiting += self._for_triton(stream, whole, checked)
        except RefusedRequestError as error:
            self._refuse(number, error)
        else:
            self._read_messages(number, stream)
        self._write()

    def _for_triton(self, stream: GrpcStream, whole: bytes, checked: CheckedMessage) -> bytes:
        """Return a message for Triton, with its prefix."""
        route = self._proxy.router.route(checked.model, checked.version, checked.session)
        stream.num_messages += 1
        stream.deadline = self._loop.time() + self._limits.request_seconds
        if checked.model:
            self._proxy.admission.charge(self.peer, stream.call.key)
            is_streamed = not stream.is_ended or stream.num_messages > 1
            self._proxy.admission.begin_request(is_streamed=is_streamed)
            stream.num_waiting += 1
        stream.exchange = self._exchange(checked, route) if stream.num_messages == 1 else None
        content = checked.content
        if route.model is not None:
            content = for_model(content, route.model)
        if not whole[0] and len(content) == len(whole) - PREFIX.size:
            return whole
        return PREFIX.pack(0, len(content)) + content

    def _exchange(self, checked: CheckedMessage, route: Route) -> Exchange | None:
        """Return the log entry of a request, None if it is not logged."""
        log = self._proxy.log
        if log is None or checked.model not in self._proxy.models or not log.wants(checked.session):
            return None
        return Exchange(
            "grpc", time.time_ns() // 1000, checked.session, checked.content, *route[1:]
        )

    def _credit(self, stream: int, size: int) -> None:
        """Return `size` bytes to the client's window, for the connection in large steps."""
        if stream == 0:
            self._debt += size
            if self._debt < _WINDOW_BYTES // 2:
                return
            size, self._debt = self._debt, 0
        if size:
            self._to_client.append(http2.write_window_update(stream, size))

    def _refuse(self, number: int, error: RefusedRequestError) -> None:
        """End a stream on both sides; the client gets the reason."""
        stream = self._streams.close(number)
        if stream is None:
            return
        code, has_headers = _CODES[error.status], stream.has_headers
        self._to_triton.append(http2.write_reset(number))
        self._to_client.append(
            http2.write_status(number, code, str(error), has_headers=has_headers)
        )
        self.since = self._loop.time()

    def _flush(self, number: int, stream: GrpcStream) -> None:
        """Send what Triton's windows allow, and open the client's window if nothing waits."""
        frames, is_last = self._streams.take_data(number)
        if frames:
            self._to_triton.append(frames)
        if is_last and not stream.is_ended:
            self._credit(number, stream.debt)
            stream.debt = 0

    def _flush_all(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if (stream := self._streams.get(number)) is not None:
                self._flush(number, stream)

    def _take_settings(self, frame: http2.Frame) -> None:
        """Forward Triton's settings with those of the proxy, and store the initial window.

        The first settings open the connection.
        """
        if frame.flags & http2.ACK:
            self._to_client.append(frame.raw)
            return
        own = {
            http2.HEADER_TABLE_SIZE: http2.HEADER_TABLE_BYTES,
            http2.MAX_CONCURRENT_STREAMS: self._limits.max_streams,
            http2.MAX_FRAME_SIZE: http2.MAX_FRAME_BYTES,
        }
        self._to_client.append(http2.with_settings(frame, own))
        if not self._is_open:
            self._is_open = True
            self._to_client.append(http2.write_window_update(0, _WINDOW_BYTES))
        self._streams.announce(frame)


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.cert, tls.key)
    context.set_alpn_protocols(["h2"])
    if tls.client_ca is not None:
        context.load_verify_locations(tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
