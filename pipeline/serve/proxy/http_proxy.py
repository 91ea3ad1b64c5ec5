"""HTTP part of the proxy: aiohttp's server and client, one request of Triton for each."""

import hmac
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web
from yarl import URL

from pipeline.serve.proxy.request_checks import (
    MAX_BODY_BYTES,
    RefusedRequestError,
    check_body,
    inflate,
)
from pipeline.serve.triton.access import KEY_HEADER

JSON_LENGTH = "Inference-Header-Content-Length"
_OWN_HEADERS = {
    *("host", "connection", "keep-alive", "trailer", "transfer-encoding", "upgrade"),
    *("proxy-connection", "content-length", "content-encoding", "expect"),
}
"""Headers of one connection, and those that describe the body as it arrived."""
_NOT_RETURNED = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""Headers that aiohttp would add."""


class HttpProxy:
    """Passes requests on to the Triton at `address`, after a check of their bodies."""

    def __init__(self, address: str, key: str | None) -> None:
        self._origin = f"http://{address}"
        self._key = key
        self._session: ClientSession
        self._runner: web.ServerRunner

    async def start(self, host: str, port: int) -> None:
        """Listen."""
        self._session = ClientSession(
            connector=TCPConnector(limit=0, force_close=False),
            timeout=ClientTimeout(total=None, sock_connect=5),
            skip_auto_headers=_AUTOMATIC,
            auto_decompress=False,
        )
        server = web.Server(self._answer, access_log=None, auto_decompress=False)
        self._runner = web.ServerRunner(server, handle_signals=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=1024, reuse_address=True).start()

    async def stop(self) -> None:
        """Close all connections."""
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await self._read(request)
        except RefusedRequestError as error:
            return web.json_response({"error": str(error)}, status=error.status)
        if not request.raw_path.startswith("/"):
            return web.json_response({"error": "the address is no path"}, status=400)
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in _OWN_HEADERS]
        url = URL(self._origin + request.raw_path, encoded=True)
        try:
            async with self._session.request(
                request.method, url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                return await _pass_back(request, answer)
        except (ClientError, OSError):
            return web.json_response({"error": "Triton is unavailable"}, status=503)

    async def _read(self, request: web.BaseRequest) -> bytes | None:
        """Return the checked body, plain; without the key, which Triton refuses, none."""
        if not request.can_read_body:
            return None
        if not self._has_key(request):
            return b""
        parts: list[bytes] = []
        size = 0
        async for part in request.content.iter_any():
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise RefusedRequestError(f"the body has more than {MAX_BODY_BYTES} bytes.", 413)
            parts.append(part)
        encodings = request.headers.getall("Content-Encoding", [])
        body = inflate(b"".join(parts), ", ".join(encodings).strip().lower())
        check_body(body, request.headers.getall(JSON_LENGTH, []))
        return body

    def _has_key(self, request: web.BaseRequest) -> bool:
        if self._key is None:
            return True
        sent = request.headers.get(KEY_HEADER, "")
        return hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), self._key.encode())


async def _pass_back(request: web.BaseRequest, answer: Any) -> web.StreamResponse:
    """Send Triton's answer, as it comes where its length is unknown."""
    headers = [(k, v) for k, v in answer.headers.items() if k.lower() not in _NOT_RETURNED]
    if answer.content_length is not None:
        return web.Response(status=answer.status, headers=headers, body=await answer.read())
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    async for part in answer.content.iter_any():
        await response.write(part)
    await response.write_eof()
    return response
