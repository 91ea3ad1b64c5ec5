"""Requests and answers of HTTP/1.1 (RFC 9112), as far as the proxy reads and writes them.

A request is parsed strictly and serialized again, so that Triton cannot parse it differently.
"""

import http
import json
import re
from dataclasses import dataclass

from pipeline.serve.proxy.limits import DEFAULT_LIMITS, Limits
from pipeline.serve.proxy.request_checks import RefusedRequestError

_END = b"\r\n\r\n"
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") (/[!-~\x80-\xff]*) (HTTP/1\.[01])")
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t -~\x80-\xff]*)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t -~\x80-\xff]*)?")
_ONE_CONNECTION = {
    *(b"connection", b"keep-alive", b"trailer", b"transfer-encoding", b"upgrade"),
    *(b"proxy-connection", b"content-length", b"expect"),
}
"""Headers that are not forwarded."""


@dataclass
class Request:
    """A request, its headers by lower-case name."""

    method: bytes
    path: bytes
    version: bytes
    headers: list[tuple[bytes, bytes]]
    length: int = 0
    """Bytes of the body."""
    is_chunked: bool = False
    """Whether the body comes in chunks instead."""
    body: bytes = b""

    def values(self, name: bytes) -> list[str]:
        """Return the values of a header."""
        return [value.decode("latin-1") for key, value in self.headers if key == name]

    @property
    def has_body(self) -> bool:
        """Whether bytes follow the headers."""
        return self.is_chunked or self.length > 0

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for 100 Continue before it sends the body."""
        return "100-continue" in map(str.lower, self.values(b"expect"))

    @property
    def closes(self) -> bool:
        """Whether the client sends no further request."""
        is_old = self.version == b"HTTP/1.0"
        return is_old or "close" in ",".join(self.values(b"connection")).lower()

    def write(self, body: bytes, drop: frozenset[bytes], add: list[bytes]) -> bytes:
        """Return the request for Triton with this body, without some headers, with more lines.

        It has a Content-Length if the client's request had a body.
        """
        lines = [b"%s %s %s" % (self.method, self.path, self.version)]
        lines += [
            b"%s: %s" % (name, value)
            for name, value in self.headers
            if name not in _ONE_CONNECTION and name not in drop
        ]
        lines += add
        if self.has_body or self.method == b"POST":
            lines.append(b"content-length: %d" % len(body))
        return b"\r\n".join(lines) + _END + body


class RequestReader:
    """Splits the data of a client into requests."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self.received = bytearray()
        self.request: Request | None = None
        """Request whose body has not arrived."""
        self._body = bytearray()
        """Chunks of a body."""
        self._num_chunks = 0

    @property
    def num_bytes(self) -> int:
        """Number of received bytes of incomplete requests."""
        return len(self.received) + len(self._body)

    def read_head(self) -> Request | None:
        """Return a request without its body, None until its headers are complete."""
        received, limits = self.received, self._limits
        while received[:2] == b"\r\n":
            del received[:2]
        stop = received.find(_END)
        if stop < 0 and len(received) <= limits.max_head_bytes:
            return None
        if not 0 <= stop <= limits.max_head_bytes:
            raise RefusedRequestError(
                f"the headers have more than {limits.max_head_bytes} bytes", 431
            )
        self.request = _parse(bytes(received[:stop]), limits)
        del received[: stop + len(_END)]
        return self.request

    def read_body(self) -> Request | None:
        """Return the request of `read_head` with its body, None until that is complete."""
        request = self.request
        assert request is not None  # noqa: S101
        if request.is_chunked:
            if not self._read_chunks():
                return None
            request.body = bytes(self._body)
            self._body.clear()
            self._num_chunks = 0
        else:
            if len(self.received) < request.length:
                return None
            request.body = bytes(self.received[: request.length])
            del self.received[: request.length]
        self.request = None
        return request

    def _read_chunks(self) -> bool:
        """Remove complete chunks from `received`; return whether the last one was among them."""
        received, max_bytes = self.received, self._limits.max_body_bytes
        while (line_end := received.find(b"\r\n", 0, self._limits.max_head_bytes)) >= 0:
            line = _CHUNK.fullmatch(received[:line_end])
            if line is None:
                raise RefusedRequestError("a chunk of the body has no size")
            size = int(line[1], 16)
            if size == 0:
                return self._read_trailer(line_end)
            if len(self._body) + size > max_bytes:
                raise RefusedRequestError(f"the body has more than {max_bytes} bytes.", 413)
            stop = line_end + 2 + size
            if len(received) < stop + 2:
                return False
            if received[stop : stop + 2] != b"\r\n":
                raise RefusedRequestError("a chunk of the body has another size than it says")
            self._body += received[line_end + 2 : stop]
            del received[: stop + 2]
            self._num_chunks += 1
            if self._num_chunks > self._limits.max_chunks:
                raise RefusedRequestError(f"the body has more than {self._num_chunks - 1} chunks.")
        if len(received) > self._limits.max_head_bytes:
            raise RefusedRequestError("a chunk of the body has no size")
        return False

    def _read_trailer(self, line_end: int) -> bool:
        """Drop the headers after the last chunk; return whether they are complete."""
        furthest = line_end + self._limits.max_head_bytes
        stop = self.received.find(_END, line_end, furthest)
        if stop < 0:
            if len(self.received) > furthest:
                raise RefusedRequestError("the headers behind the body do not end")
            return False
        del self.received[: stop + len(_END)]
        return True


class AnswerReader:
    """Finds the end of an answer of Triton."""

    def __init__(self, method: bytes) -> None:
        self._method = method
        self._received = bytearray()
        self._left: int | None = None
        """Bytes of the body, or of a chunk, that have not arrived."""
        self._is_chunked = self._is_last = False
        self.has_head = False
        self.is_done = False
        self.can_continue = False
        """Whether the connection takes another request."""

    def feed(self, data: bytes) -> bytes:
        """Return the part of `data` that belongs to the answer. ValueError for invalid HTTP."""
        if self.has_head:
            return self._read_body(data)
        self._received += data
        stop = self._received.find(_END)
        if stop < 0:
            return b""
        head = bytes(self._received[: stop + len(_END)])
        rest = bytes(self._received[len(head) :])
        self._received.clear()
        self.has_head = True
        status, *lines = head[:-4].split(b"\r\n")
        headers = {}
        for name, _, value in (line.partition(b":") for line in lines):
            headers[name.lower()] = value.strip().lower()
        is_closing = headers.get(b"connection") == b"close"
        # Triton sends a body after HEAD: the connection is kept only if the end is certain
        is_certain = status.split()[1] == b"200" and self._method in (b"GET", b"POST")
        self.can_continue = is_certain and not is_closing
        if self._method == b"HEAD":
            self.is_done = True
            return head
        self._is_chunked = headers.get(b"transfer-encoding") == b"chunked"
        self._left = 0 if self._is_chunked else int(headers.get(b"content-length", b"0"))
        return head + self._read_body(rest)

    def _read_body(self, data: bytes) -> bytes:
        if self._is_chunked:
            self._received += data
            self._skip_chunks()
            return data
        assert self._left is not None  # noqa: S101
        part = data[: self._left]
        self._left -= len(part)
        self.is_done = self._left == 0
        return part

    def _skip_chunks(self) -> None:
        received = self._received
        while not self.is_done:
            skipped = min(self._left or 0, len(received))
            del received[:skipped]
            self._left = (self._left or 0) - skipped
            line_end = received.find(b"\r\n")
            if self._left or line_end < 0:
                return
            line = bytes(received[:line_end])
            del received[: line_end + 2]
            if self._is_last:
                self.is_done = not line
            elif size := int(line.split(b";")[0], 16):
                self._left = size + 2
            else:
                self._is_last = True


def write_error(error: RefusedRequestError, *, closes: bool) -> bytes:
    """Return an answer with the reason of a refusal."""
    body = json.dumps({"error": str(error)}).encode()
    phrase = http.HTTPStatus(error.status).phrase
    lines = [
        f"HTTP/1.1 {error.status} {phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(["Connection: close"] if closes else []),
        *([f"Retry-After: {error.retry_seconds}"] if error.retry_seconds else []),
    ]
    return "\r\n".join(lines).encode() + _END + body


def _parse(head: bytes, limits: Limits) -> Request:
    first, *lines = head.split(b"\r\n")
    if len(lines) > limits.max_headers:
        raise RefusedRequestError(f"the request has more than {limits.max_headers} headers", 431)
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise RefusedRequestError("the first line is no request of HTTP/1.1 for a path")
    headers = []
    for text in lines:
        header = _HEADER.fullmatch(text)
        if header is None:
            raise RefusedRequestError("a header is not of the form NAME: VALUE")
        headers.append((header[1].lower(), header[2].rstrip(b" \t")))
    request = Request(line[1], line[2], line[3], headers)
    lengths, encodings = request.values(b"content-length"), request.values(b"transfer-encoding")
    if encodings:
        if [encoding.lower() for encoding in encodings] != ["chunked"] or lengths:
            raise RefusedRequestError("Transfer-Encoding is not chunked alone, without a length")
        request.is_chunked = True
    elif lengths:
        if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,18}", lengths[0]):
            raise RefusedRequestError("Content-Length is not one whole number")
        request.length = int(lengths[0])
        if request.length > limits.max_body_bytes:
            raise RefusedRequestError(f"the body has more than {limits.max_body_bytes} bytes.", 413)
    return request
