"""The page's own small HTTP server, beside Triton."""

import ipaddress
import json
import socket
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

from pipeline.core.errors import ConfigError, PipelineError, ServingError
from pipeline.serve.client.client import Client
from pipeline.serve.page.api import Api
from pipeline.serve.triton.ports import ipv4_address

STATIC = Path(__file__).parent / "static"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
DEFAULT_PORT = 8003
LARGEST_BODY_BYTES = 1 << 18
MOST_CONNECTIONS = 64
SILENCE_SECONDS = 10
"""How long a connection may say nothing."""
HEADERS = {
    # no other host, no inline script or style, no frame around it
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Page:
    """Listens from the start and answers from `open` on, until the `with` block ends."""

    def __init__(self, host: str, port: int) -> None:
        """Take the port; 0 takes a free one. ServingError where it cannot be had."""
        self._api: Api | None = None
        address = ipv4_address(host)
        try:
            self._server = _Server((address, port), self)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ServingError(
                f"cannot listen on {host}:{port} for the page: {reason}. Choose another "
                "--page-port (0 takes a free one)."
            ) from None
        self._thread: threading.Thread | None = None
        self.loopback = ipaddress.ip_address(address).is_loopback
        """Whether this machine alone can connect."""
        self.names = {"localhost", "127.0.0.1", address, host}
        shown = "127.0.0.1" if address == "0.0.0.0" else address  # noqa: S104  compared only
        self.url = f"http://{shown}:{self._server.server_port}/"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def open(
        self, repository: Path, grpc_url: str, *, key: str | None = None, follow: bool
    ) -> None:
        """Answer for `repository`, which the Triton at `grpc_url` serves; see `Api`."""

        def connect(name: str) -> Client:
            # of tritonclient's two, the one for gRPC may be used by several threads
            return Client(f"grpc://{grpc_url}", name=name, key=key)

        self.answer(Api(repository, connect, follow=follow))

    def answer(self, api: Api) -> None:
        """Begin to answer, from `api`."""
        self._api = api
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        self._thread.start()

    @property
    def api(self) -> Api:
        """What answers."""
        assert self._api is not None  # noqa: S101  nobody is let in before
        return self._api


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], page: Page) -> None:
        self.page = page
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, _Handler, bind_and_activate=False)
        try:
            self.server_bind()
            # at once: of two that are only bound to a port, the later one would fail to listen
            self.server_activate()
        except BaseException:
            self.server_close()
            raise

    def server_bind(self) -> None:
        # not HTTPServer's, which looks the host's name up in the DNS
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # whoever does not wait for an answer is no fault of ours
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Answer(NamedTuple):
    status: int
    kind: str
    body: bytes


class _RefusedError(Exception):
    """What a client is told, with its status."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(line)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = SILENCE_SECONDS
    server_version = "pipeline"
    sys_version = ""

    def do_GET(self) -> None:
        self._respond(self._get)

    def do_POST(self) -> None:
        self._respond(self._post)

    def _get(self) -> _Answer:
        path, query = self._target()
        if path in FILES:
            name, kind = FILES[path]
            return _Answer(HTTPStatus.OK, kind, (STATIC / name).read_bytes())
        if path == "/api/model":
            return _json(self.server.page.api.model())
        if path == "/api/items":
            return _json(self.server.page.api.items(query))
        raise _RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here. The page is at /.")

    def _post(self) -> _Answer:
        path, _ = self._target()
        if path != "/api/recommend":
            raise _RefusedError(HTTPStatus.NOT_FOUND, "Only /api/recommend takes a POST.")
        if self.headers.get_content_type() != "application/json":
            # which no form of another site can send
            raise _RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The request is no application/json."
            )
        try:
            asked = json.loads(self._body())
        except (ValueError, RecursionError):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "The request is no JSON.") from None
        return _json(self.server.page.api.recommend(asked))

    def _target(self) -> tuple[str, dict[str, str]]:
        self._check_origin()
        try:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=10))
        except ValueError:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "The address is not readable.") from None
        return parts.path, query

    def _check_origin(self) -> None:
        """A page of another site must not ask here, by its own name or by one that leads here."""
        hosts = self.headers.get_all("Host", [])
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        page = self.server.page
        if name is None or (page.loopback and name not in page.names):
            raise _RefusedError(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"This server is {page.url} and answers under no other name.",
            )
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{hosts[0]}":
            raise _RefusedError(HTTPStatus.FORBIDDEN, "Another site's page may not ask here.")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal() and len(length) < 20):
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing.")
        if int(length) > LARGEST_BODY_BYTES:
            # read, so that who sends a little too much reads the answer
            self.rfile.read(min(int(length), 4 * LARGEST_BODY_BYTES))
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The request has {length} bytes, expected up to {LARGEST_BODY_BYTES}.",
            )
        return self.rfile.read(int(length))

    def _respond(self, answer: Any) -> None:
        try:
            found = answer()
        except _RefusedError as error:
            found = _failure(error.status, str(error))
        except ConfigError as error:
            found = _failure(HTTPStatus.BAD_REQUEST, str(error))
        except PipelineError as error:
            found = _failure(HTTPStatus.BAD_GATEWAY, str(error))
        except OSError:
            raise  # the connection is gone
        except Exception:
            self._send(_failure(HTTPStatus.INTERNAL_SERVER_ERROR, "The page's server failed."))
            raise  # a bug keeps its traceback
        self._send(found)

    def _send(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, POST")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library finds wrong, in our form."""
        del explain
        if code == HTTPStatus.NOT_IMPLEMENTED:
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, "Only GET and POST are answered."
        self.close_connection = True
        self._send(_failure(code, message or HTTPStatus(code).phrase))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        """Nothing: standard error is for errors."""


def _json(value: Any) -> _Answer:
    body = json.dumps(value, allow_nan=False).encode()
    return _Answer(HTTPStatus.OK, "application/json", body)


def _failure(status: int, line: str) -> _Answer:
    body = json.dumps({"error": " ".join(line.split())}).encode()
    return _Answer(status, "application/json", body)


def _host_name(header: str) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None
