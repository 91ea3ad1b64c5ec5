"""HTTP part of the proxy: aiohttp's server, and connections to Triton that stay open."""

import asyncio
import hmac
from collections.abc import AsyncIterator

from aiohttp import web

from pipeline.serve.proxy.request_checks import (
    MAX_BODY_BYTES,
    CheckedBody,
    RefusedRequestError,
    check_body,
    inflate,
)
from pipeline.serve.triton.access import KEY_HEADER

JSON_LENGTH = "Inference-Header-Content-Length"
_OWN_HEADERS = {
    *(b"connection", b"keep-alive", b"trailer", b"transfer-encoding", b"upgrade"),
    *(b"proxy-connection", b"content-length", b"content-encoding", b"expect"),
    JSON_LENGTH.lower().encode(),
}
"""Headers of one connection, and those that describe the body as it arrived."""
_NOT_RETURNED = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_MAX_IDLE = 64
"""Connections to Triton that wait for a request."""
_MAX_HEAD_BYTES = 1 << 20
_CONNECT_SECONDS = 5
_FAILURES = (OSError, EOFError, ValueError, asyncio.LimitOverrunError)
"""What a connection raises whose other side is gone, or speaks something else."""


class HttpProxy:
    """Passes requests on to the Triton at 127.0.0.1:`port`, after a check of their bodies."""

    def __init__(self, port: int, key: str | None) -> None:
        self._port = port
        self._key = key
        self._idle: list[_Connection] = []
        self._runner: web.ServerRunner

    async def start(self, host: str, port: int) -> None:
        """Listen."""
        server = web.Server(self._answer, access_log=None, auto_decompress=False)
        self._runner = web.ServerRunner(server, handle_signals=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=1024, reuse_address=True).start()

    async def stop(self) -> None:
        """Close all connections."""
        await self._runner.cleanup()
        for connection in self._idle:
            connection.close()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await self._read(request)
        except RefusedRequestError as error:
            return web.json_response({"error": str(error)}, status=error.status)
        if not request.raw_path.startswith("/"):
            return web.json_response({"error": "the address is no path"}, status=400)
        content = _request_head(request, body) + (b"" if body is None else body.content)
        try:
            connection = await self._send(content)
        except _FAILURES:
            return web.json_response({"error": "Triton is unavailable"}, status=503)
        try:
            response = await _pass_back(request, connection)
        except _FAILURES:  # nothing has been sent back yet
            connection.close()
            return web.json_response({"error": "Triton is unavailable"}, status=503)
        except BaseException:
            connection.close()
            raise
        # Triton sends a body after HEAD: only what is certain to be at its end is used again
        is_certain = request.method in ("GET", "POST") and response.status == 200
        if is_certain and connection.is_open() and len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    async def _send(self, content: bytes) -> "_Connection":
        """Send a request; return the connection, which has the beginning of the answer.

        A connection that waited may be closed by now: a new one takes the request then.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open() and await connection.send(content):
                return connection
            connection.close()
        async with asyncio.timeout(_CONNECT_SECONDS):
            streams = await asyncio.open_connection("127.0.0.1", self._port, limit=_MAX_HEAD_BYTES)
        connection = _Connection(*streams)
        if await connection.send(content):
            return connection
        connection.close()
        raise ConnectionError

    async def _read(self, request: web.BaseRequest) -> CheckedBody | None:
        """Return the checked body, plain; without the key, which Triton refuses, an empty one."""
        if not request.can_read_body:
            return None
        if not self._has_key(request):
            return CheckedBody(b"", None)
        parts: list[bytes] = []
        size = 0
        async for part in request.content.iter_any():
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise RefusedRequestError(f"the body has more than {MAX_BODY_BYTES} bytes.", 413)
            parts.append(part)
        encodings = request.headers.getall("Content-Encoding", [])
        body = inflate(b"".join(parts), ", ".join(encodings).strip().lower())
        return check_body(body, request.headers.getall(JSON_LENGTH, []))

    def _has_key(self, request: web.BaseRequest) -> bool:
        if self._key is None:
            return True
        sent = request.headers.get(KEY_HEADER, "")
        return hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), self._key.encode())


class _Connection:
    """Connection to Triton, for one request at a time."""

    status: int
    headers: list[tuple[str, str]]
    length: int | None
    """Bytes of the answer's body; None where it comes in chunks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._closes = False

    def is_open(self) -> bool:
        """Return whether another request can be sent."""
        return not (self._closes or self._reader.at_eof() or self._writer.is_closing())

    def close(self) -> None:
        """Close without waiting."""
        self._writer.close()

    async def send(self, content: bytes) -> bool:
        """Send a request and read the head of its answer; return whether one came."""
        self._writer.write(content)
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (OSError, EOFError):
            return False
        except BaseException:
            self.close()
            raise
        status, *lines = head[:-4].decode("latin-1").split("\r\n")
        self.status = int(status.split()[1])
        pairs = (line.partition(":") for line in lines)
        self.headers = [(name, value.strip()) for name, _, value in pairs]
        by_name = {name.lower(): value.lower() for name, value in self.headers}
        is_chunked = by_name.get("transfer-encoding") == "chunked"
        self.length = None if is_chunked else int(by_name.get("content-length", "0"))
        self._closes = by_name.get("connection") == "close"
        return True

    async def read(self, size: int) -> bytes:
        """Read that many bytes of a body."""
        return await self._reader.readexactly(size)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the chunks of a body as they come."""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readuntil(b"\r\n")


def _request_head(request: web.BaseRequest, body: CheckedBody | None) -> bytes:
    """Return the first lines of a request for Triton, written anew from what aiohttp has read."""
    lines = [f"{request.method} {request.raw_path} HTTP/1.1".encode("utf-8", "surrogateescape")]
    lines += [
        name + b": " + value
        for name, value in request.raw_headers
        if name.lower() not in _OWN_HEADERS
    ]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body.content))
        if body.json_length is not None:
            lines.append(f"{JSON_LENGTH}: {body.json_length}".encode())
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def _pass_back(request: web.BaseRequest, connection: _Connection) -> web.StreamResponse:
    """Send Triton's answer, as it comes where its length is unknown."""
    headers = [(k, v) for k, v in connection.headers if k.lower() not in _NOT_RETURNED]
    status, length = connection.status, connection.length
    if request.method == "HEAD":
        return web.Response(status=status, headers=headers)
    if length is not None:
        body = await connection.read(length)
        return web.Response(status=status, headers=headers, body=body)
    response = web.StreamResponse(status=status, headers=headers)
    await response.prepare(request)
    try:
        async for part in connection.chunks():
            await response.write(part)
    except _FAILURES:
        connection.close()
        if request.transport is not None:
            request.transport.abort()  # the client must not take it for the end
        return response
    await response.write_eof()
    return response
