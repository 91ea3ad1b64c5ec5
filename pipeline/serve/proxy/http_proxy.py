"""HTTP part of the proxy: requests pass after a check of their bodies, answers as they are."""

import asyncio
import hmac
import re
import time
from typing import TYPE_CHECKING

from pipeline.serve.proxy.connection import CONNECT_SECONDS, Address, Side
from pipeline.serve.proxy.experiment import Router
from pipeline.serve.proxy.http1 import AnswerReader, Request, RequestReader, write_error
from pipeline.serve.proxy.ranking_models import RankingModels
from pipeline.serve.proxy.request_checks import (
    RefusedRequestError,
    check_body,
    inflate,
)
from pipeline.serve.request_log.exchange import Exchange
from pipeline.serve.triton.access import KEY_HEADER

if TYPE_CHECKING:
    from pipeline.serve.request_log.request_log import RequestLog

JSON_LENGTH = b"inference-header-content-length"
_DESCRIBES_BODY = frozenset([JSON_LENGTH, b"content-encoding"])
"""Headers that are written anew, as the body may be another one."""
_INFER = re.compile(rb"/v2/models/([\w.-]+)(?:/versions/(\d+))?/infer")
_MAX_WAITING_BYTES = 64 << 10
"""What a client may send ahead of its next request."""
_LINGER_SECONDS = 2
"""Time that a client has to read the last answer while what it still sends is thrown away."""
_UNAVAILABLE = RefusedRequestError("Triton is unavailable", 503)


class HttpProxy:
    """Passes requests on to the Triton at `address`, after a check of their bodies."""

    def __init__(
        self,
        address: Address,
        models: RankingModels,
        router: Router,
        key: str | None,
        log: "RequestLog | None" = None,
    ) -> None:
        self.address = address
        self.models = models
        self.router = router
        self.log = log
        self.key = None if key is None else key.encode()
        self.connections: set[_Client] = set()
        self._server: asyncio.Server

    async def start(self, host: str, port: int) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), host, port, backlog=1024)

    async def stop(self) -> None:
        """Close all connections."""
        self._server.close()
        for connection in list(self.connections):
            connection.transport.close()


class _Triton(Side):
    """Connection to Triton, which belongs to one client."""

    def __init__(self, client: "_Client") -> None:
        self.other = self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.answer_received(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._client.triton_lost(self)


class _Client(Side):
    """Connection of a client: one request after the other."""

    def __init__(self, proxy: HttpProxy) -> None:
        self._proxy = proxy
        self._reader = RequestReader()
        self._request = b""
        """What Triton is asked now."""
        self._answer: AnswerReader | None = None
        self._exchange: Exchange | None = None
        """What is to be logged of the request that Triton answers."""
        self._is_first = True
        """Whether Triton's connection has carried no request before."""
        self._is_last = self._is_ended = False
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._proxy.connections.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self._proxy.connections.discard(self)
        self._is_ended = True
        if self.other is not None:
            self.other.transport.close()

    def data_received(self, data: bytes) -> None:
        """Take what the client sends."""
        if self._is_ended:
            return
        self._reader.received += data
        if self._answer is None:
            self._read_requests()
        elif len(self._reader.received) > _MAX_WAITING_BYTES:
            self.transport.pause_reading()

    def _read_requests(self) -> None:
        """Read on until Triton has something to answer."""
        while self._answer is None and not self._is_ended:
            try:
                request = self._next_request()
            except RefusedRequestError as error:  # where it ends is unknown
                self.transport.write(write_error(error, closes=True))
                self._end()
                return
            if request is None:
                return
            try:
                content = self._checked(request)
            except RefusedRequestError as error:
                self.transport.write(write_error(error, closes=request.closes))
                if request.closes:
                    self._end()
                continue
            self._ask(request, content)

    def _next_request(self) -> Request | None:
        """Return a request with its body; without the key, which Triton refuses, before it."""
        reader = self._reader
        if reader.request is None:
            request = reader.read_head()
            if request is None:
                return None
            if request.has_body and not self._has_key(request):
                self._is_last = True
                return request
            if request.has_body and request.expects_continue and not reader.received:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return reader.read_body()

    def _has_key(self, request: Request) -> bool:
        if self._proxy.key is None:
            return True
        sent = (request.values(KEY_HEADER.encode()) or [""])[0]
        return hmac.compare_digest(sent.encode("latin-1"), self._proxy.key)

    def _checked(self, request: Request) -> bytes:
        """Return the request for Triton."""
        self._exchange = None
        if not request.body:
            return request.write(b"", frozenset(), [])
        encodings = ", ".join(request.values(b"content-encoding"))
        body = inflate(request.body, encodings.strip().lower())
        path = _INFER.fullmatch(request.path)
        name, version = ("", "") if path is None else (path[1].decode(), (path[2] or b"").decode())
        checked = check_body(body, request.values(JSON_LENGTH), name, self._proxy.models)
        route = self._proxy.router.route(name, version, checked.session)
        if route.model is not None:
            request.path = b"/v2/models/%s/infer" % route.model.encode()
        log = self._proxy.log
        if log is not None and name in self._proxy.models and log.wants(checked.session):
            self._exchange = Exchange(
                "http", time.time_ns() // 1000, checked.session, checked.content, *route[1:],
                json_length=checked.json_length,
            )  # fmt: skip
        length = checked.json_length
        lines = [] if length is None else [b"%s: %d" % (JSON_LENGTH, length)]
        return request.write(checked.content, _DESCRIBES_BODY, lines)

    def _ask(self, request: Request, content: bytes) -> None:
        self._request = content
        self._answer = AnswerReader(request.method)
        self._is_last = self._is_last or request.closes
        if self.other is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        else:
            self.other.transport.write(content)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, triton = await loop.create_connection(
                    lambda: _Triton(self), *self._proxy.address
                )
        except OSError:
            self._fail()
            return
        if self._is_ended:
            triton.transport.close()
            return
        self.other, self._is_first = triton, True
        triton.transport.write(self._request)

    def answer_received(self, data: bytes) -> None:
        """Pass on what Triton sends; the answer's end is the beginning of the next request."""
        answer = self._answer
        try:
            part = b"" if answer is None else answer.feed(data)
        except (ValueError, IndexError):
            self.transport.abort()
            return
        if part:
            self.transport.write(part)
            if self._exchange is not None:
                self._exchange.answer += part
        if answer is None or not answer.is_done:
            return
        self._answer, self._is_first = None, False
        if self._exchange is not None and self._proxy.log is not None:
            self._proxy.log.put(self._exchange)
        self._exchange = None
        if not answer.can_continue:
            self._drop_triton()
        if self._is_last:
            self._end()
            return
        self.transport.resume_reading()
        if self._reader.received:
            self._read_requests()

    def triton_lost(self, triton: _Triton) -> None:
        """Ask again where a connection that waited was closed, else tell the client."""
        if triton is not self.other:
            return
        self.other = None
        if self._answer is None or self._is_ended:
            return
        if self._answer.has_head:
            self.transport.abort()  # the client must not take it for the end
        elif self._is_first:
            self._fail()
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def _fail(self) -> None:
        """Answer that there is no Triton."""
        self._answer = None
        self.transport.write(write_error(_UNAVAILABLE, closes=True))
        self._end()

    def _drop_triton(self) -> None:
        triton, self.other = self.other, None
        if triton is not None:
            triton.transport.close()

    def _end(self) -> None:
        """Close the connection once the client has read the last answer."""
        self._is_ended = True
        self._reader.received.clear()
        self._drop_triton()
        if self.transport.is_closing():
            return
        self.transport.write_eof()
        self.transport.resume_reading()
        asyncio.get_running_loop().call_later(_LINGER_SECONDS, self.transport.close)
