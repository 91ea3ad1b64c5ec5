"""HTTP part of the proxy: forwards requests after a check of their bodies, answers unchanged."""

import asyncio
import re
import time
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING

from pipeline.serve.proxy.admission import Admission, Connections, client_name
from pipeline.serve.proxy.calls import Call, Calls
from pipeline.serve.proxy.check_process import CheckProcess
from pipeline.serve.proxy.connection import CONNECT_SECONDS, Address, ClientSide, Side
from pipeline.serve.proxy.experiment import Router
from pipeline.serve.proxy.health import HealthPoll
from pipeline.serve.proxy.http1 import AnswerReader, Request, RequestReader, write_error
from pipeline.serve.proxy.limits import SMALL_BYTES
from pipeline.serve.proxy.ranking_models import RankingModels
from pipeline.serve.proxy.request_checks import (
    CheckedBody,
    LargeContentError,
    RefusedRequestError,
    check_body,
    inflate,
)
from pipeline.serve.request_log.exchange import Exchange
from pipeline.serve.triton.access import KEY_HEADER, PROXY_KEY_HEADER

if TYPE_CHECKING:
    from pipeline.serve.request_log.request_log import RequestLog

JSON_LENGTH = b"inference-header-content-length"
_DESCRIBES_BODY = frozenset([JSON_LENGTH, b"content-encoding"])
"""Headers that are replaced, as the body may have changed."""
_INFER = re.compile(rb"/v2/models/([\w.-]+)(?:/versions/(\d+))?/infer")
_MAX_WAITING_BYTES = 64 << 10
"""Largest bytes that a client may send while a request waits for its answer."""
_LINGER_SECONDS = 2
"""Time for a client to read the last answer, while the data that it still sends is dropped."""
_UNAVAILABLE = RefusedRequestError("Triton is unavailable", 503)
_HEAD_LATE = RefusedRequestError("the headers took too long to arrive", 408)
_BODY_LATE = RefusedRequestError("the body took too long to arrive", 408)
_ANSWER_LATE = RefusedRequestError("Triton took too long to answer", 504)


class HttpProxy:
    """Forwards requests to the Triton at `address`, after a check of their bodies."""

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
        self.log = log
        self.calls = calls
        keys = [KEY_HEADER, PROXY_KEY_HEADER] if calls.has_keys else []
        self.key_headers = frozenset(name.encode() for name in keys)
        """Headers of a client that are not forwarded."""
        self.key_lines: list[bytes] = []
        """Header with the key that Triton expects."""
        if triton_key is not None:
            self.key_lines.append(f"{PROXY_KEY_HEADER}: {triton_key}".encode())
        self.admission = admission
        self.checks = checks
        self.connections = Connections(admission)
        self.health = HealthPoll(address, models.repository)
        limits, seconds = admission.limits, admission.limits.request_seconds
        self.stage_seconds = (
            *(limits.head_seconds, limits.body_seconds, seconds),
            *(seconds, limits.idle_seconds, seconds),
        )
        """Time for each stage of a connection."""
        self._server: asyncio.Server

    async def start(self, host: str, port: int) -> None:
        """Listen."""
        await self.health.start()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), host, port, backlog=1024)

    async def stop(self) -> None:
        """Close all connections."""
        self.health.stop()
        self._server.close()
        for connection in self.connections:
            connection.close()


class _Triton(Side):
    """Connection to Triton of one client."""

    def __init__(self, client: "_Client") -> None:
        super().__init__()
        self.other = self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.answer_received(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._client.release("other")
        self._client.triton_lost(self)


class _Stage(IntEnum):
    """What a connection waits for."""

    HEAD = 0
    """Headers of a request that has started to arrive, or of the first one."""
    BODY = 1
    ANSWER = 2
    """Check and answer of Triton."""
    READING = 3
    """The client, which reads the answer."""
    IDLE = 4
    """The next request."""
    END = 5
    """The client, which reads the last answer."""


class _Client(ClientSide):
    """Connection of a client: one request after the other."""

    def __init__(self, proxy: HttpProxy) -> None:
        super().__init__()
        self._proxy = proxy
        self._limits = proxy.admission.limits
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader(self._limits)
        self._request = b""
        """Request that Triton has not answered."""
        self._answer: AnswerReader | None = None
        self._exchange: Exchange | None = None
        """Log entry of the request that Triton answers."""
        self._is_first = True
        """Whether this is the first request on the connection to Triton."""
        self._is_last = self._is_ended = False
        self._task: asyncio.Task[None] | None = None
        """Check or connection for which the request waits."""
        self._is_checking = False
        self._is_waiting = False
        """Whether the request is counted as waiting for Triton."""
        self._num_checked = 0
        """Bytes of a body in the check process."""
        self._num_bytes = 0
        """Bytes that are counted as buffered."""
        self._stage = _Stage.HEAD
        self._deadline = self.since + self._limits.head_seconds

    @property
    def is_busy(self) -> bool:
        """Whether a request waits for its answer, and not for the client."""
        return self._stage is _Stage.ANSWER and not self.is_slow

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._proxy.connections.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self._proxy.connections.discard(self)
        self._is_ended = True
        self._forget()
        if self.other is not None:
            self.other.transport.close()

    def close(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def expire(self, now: float) -> None:
        """Refuse a request that takes too long, and close a connection that waits too long."""
        if now < self._deadline:
            return
        if self._stage is _Stage.HEAD and self._reader.received:
            self._refuse(_HEAD_LATE)
        elif self._stage is _Stage.BODY:
            self._refuse(_BODY_LATE)
        elif self._stage is _Stage.ANSWER and not (self._answer and self._answer.has_head):
            self._refuse(_ANSWER_LATE)
        else:
            self.close()

    def data_received(self, data: bytes) -> None:
        """Receive data of the client."""
        if self._is_ended:
            return
        self._reader.received += data
        if not self._can_read():
            if len(self._reader.received) > _MAX_WAITING_BYTES:
                self.hold("ahead")
        else:
            self._read_requests()
        self._count_bytes()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stage is _Stage.READING:
            self._wait(_Stage.IDLE)
            self._continue()

    def _can_read(self) -> bool:
        """Return whether the next request may be read."""
        is_free = self._answer is None and not self._is_checking
        return is_free and not self._is_ended and not self.is_slow

    def _wait(self, stage: _Stage) -> None:
        """Enter a stage and set its deadline."""
        if stage is self._stage:
            return
        self._stage = stage
        self._deadline = self._loop.time() + self._proxy.stage_seconds[stage]

    def _count_bytes(self) -> None:
        """Count the received bytes of a request; refuse it if all requests hold too many."""
        before = self._num_bytes
        self._num_bytes = self._reader.num_bytes + self._num_checked + len(self._request)
        try:
            self._proxy.admission.buffer(before, self._num_bytes)
        except RefusedRequestError as error:
            self._refuse(error)

    def _forget(self) -> None:
        """Abandon the current request."""
        if self._task is not None:
            self._task.cancel()
            self._task = None  # its exception holds the request
        self._reader = RequestReader(self._limits)
        self._request, self._num_checked = b"", 0
        self._count_bytes()
        self._end_wait()

    def _end_wait(self) -> None:
        if self._is_waiting:
            self._is_waiting = False
            self._proxy.admission.end_request()

    def _read_requests(self) -> None:
        """Read requests until one waits for Triton."""
        while self._can_read():
            try:
                request = self._next_request()
            except RefusedRequestError as error:  # its end is unknown
                self._refuse(error)
                return
            if request is None:
                return
            if (health := self._proxy.health.answer(request)) is not None:
                self.transport.write(health)
                self._after_answer(request)
                continue
            self._wait(_Stage.ANSWER)
            try:
                self._admit(request)
                content = self._checked(request)
            except LargeContentError:
                self._is_checking, self._num_checked = True, len(request.body)
                self._task = self._loop.create_task(self._check_elsewhere(request))
                return
            except RefusedRequestError as error:
                self._answer_refusal(request, error)
                continue
            self._ask(request, content)

    def _next_request(self) -> Request | None:
        """Return a request with its body. RefusedRequestError before the body of a closed call."""
        reader = self._reader
        if reader.request is None:
            request = reader.read_head()
            if request is None:
                if reader.received:
                    self._wait(_Stage.HEAD)
                return None
            if request.has_body and not self._check_call(request).runs_model:
                raise RefusedRequestError("this call takes no body")
            if request.has_body and request.expects_continue and not reader.received:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._wait(_Stage.BODY)
        return reader.read_body()

    def _check_call(self, request: Request) -> Call:
        """Return the call of a request. RefusedRequestError for one that is closed to the client.

        Query strings, which Triton does not read, are removed.
        """
        request.path = request.path.partition(b"?")[0]
        sent = request.values(KEY_HEADER.encode())
        return self._proxy.calls.check_http(request.path, sent[0] if sent else None)

    def _admit(self, request: Request) -> None:
        """Count a request that a model answers. RefusedRequestError if too many wait."""
        call = self._check_call(request)
        if call.runs_model:
            self._proxy.admission.charge(self.peer, call.key)
            self._proxy.admission.begin_request()
            self._is_waiting = True

    def _answer_refusal(self, request: Request, error: RefusedRequestError) -> None:
        """Answer a request that does not reach Triton."""
        self._end_wait()
        self.transport.write(write_error(error, closes=request.closes))
        self._after_answer(request)

    def _after_answer(self, request: Request) -> None:
        """Continue after an answer of the proxy itself."""
        self._answered()
        if request.closes:
            self._end()

    def _answered(self) -> None:
        self.since = self._loop.time()
        self._wait(_Stage.READING if self.is_slow else _Stage.IDLE)

    def _refuse(self, error: RefusedRequestError) -> None:
        """Answer with a refusal, and end the connection."""
        self._answer = None
        self.transport.write(write_error(error, closes=True))
        self._end()

    async def _check_elsewhere(self, request: Request) -> None:
        """Check a large request in the check process, then send it to Triton."""
        name, version = _model_of(request)
        try:
            checked = await self._proxy.checks.check_body(
                client_name(self.peer, self._check_call(request).key),
                request.body, _encoding(request), request.values(JSON_LENGTH), name,
                adds_outputs=name in self._proxy.models,
            )  # fmt: skip
        except RefusedRequestError as error:
            self._is_checking, self._num_checked = False, 0
            self._answer_refusal(request, error)
        else:
            self._is_checking, self._num_checked = False, 0
            self._ask(request, self._for_triton(request, checked, name, version))
        self._count_bytes()
        self._continue()

    def _continue(self) -> None:
        """Read the next request if one has arrived."""
        if self._can_read():
            self.release("ahead")
            self._read_requests()
            self._count_bytes()

    def _checked(self, request: Request) -> bytes:
        """Return a small request for Triton. LargeContentError for a large one."""
        self._exchange = None
        if not request.body:
            return request.write(b"", self._proxy.key_headers, self._proxy.key_lines)
        if len(request.body) > SMALL_BYTES:
            raise LargeContentError
        name, version = _model_of(request)
        body = inflate(request.body, _encoding(request), self._limits.max_body_bytes, SMALL_BYTES)
        lengths = request.values(JSON_LENGTH)
        checked = check_body(body, lengths, name, self._proxy.models, self._limits)
        return self._for_triton(request, checked, name, version)

    def _for_triton(self, request: Request, checked: CheckedBody, name: str, version: str) -> bytes:
        """Return a request for Triton, and prepare its log entry."""
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
        lines += self._proxy.key_lines
        return request.write(checked.content, _DESCRIBES_BODY | self._proxy.key_headers, lines)

    def _ask(self, request: Request, content: bytes) -> None:
        self._request = content
        self._answer = AnswerReader(request.method)
        self._is_last = self._is_last or request.closes
        if self.other is None:
            self._task = self._loop.create_task(self._connect())
        else:
            self.other.transport.write(content)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, triton = await self._loop.create_connection(
                    lambda: _Triton(self), *self._proxy.address
                )
        except OSError:
            self._refuse(_UNAVAILABLE)
            return
        if self._is_ended:
            triton.transport.close()
            return
        self.other, self._is_first = triton, True
        triton.transport.write(self._request)

    def answer_received(self, data: bytes) -> None:
        """Forward data of Triton; the end of an answer starts the next request."""
        answer = self._answer
        try:
            part = b"" if answer is None else answer.feed(data)
        except (ValueError, IndexError):
            self.transport.abort()
            return
        if part:
            self._end_wait()
            self._request = b""
            self.transport.write(part)
            if self._exchange is not None:
                self._exchange.answer += part
        if answer is None or not answer.is_done:
            return
        self._answer, self._is_first = None, False
        self._count_bytes()
        self._answered()
        if self._exchange is not None and self._proxy.log is not None:
            self._proxy.log.put(self._exchange)
        self._exchange = None
        if not answer.can_continue:
            self._drop_triton()
        if self._is_last:
            self._end()
            return
        self.release("ahead")
        if self._reader.received:
            self._continue()

    def triton_lost(self, triton: _Triton) -> None:
        """Retry if Triton closed an idle connection, else report the failure to the client."""
        if triton is not self.other:
            return
        self.other = None
        if self._answer is None or self._is_ended:
            return
        if self._answer.has_head:
            self.transport.abort()  # the client must not read this as the end of the answer
        elif self._is_first:
            self._refuse(_UNAVAILABLE)
        else:
            self._task = self._loop.create_task(self._connect())

    def _drop_triton(self) -> None:
        triton, self.other = self.other, None
        if triton is not None:
            triton.transport.close()

    def _end(self) -> None:
        """Close the connection once the client has read the last answer."""
        self._is_ended = True
        self._forget()
        self._drop_triton()
        if self.transport.is_closing():
            return
        self._wait(_Stage.END)
        with suppress(OSError):  # the client has closed the connection
            self.transport.write_eof()
        self.release("ahead")
        self._loop.call_later(_LINGER_SECONDS, self.transport.close)


def _model_of(request: Request) -> tuple[str, str]:
    """Return the name and version of the model of a request, empty for other requests."""
    path = _INFER.fullmatch(request.path)
    return ("", "") if path is None else (path[1].decode(), (path[2] or b"").decode())


def _encoding(request: Request) -> str:
    return ", ".join(request.values(b"content-encoding")).strip().lower()
