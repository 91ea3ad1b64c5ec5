"""HTTP server of the page: Tornado, in a thread of the launcher of Triton."""

import asyncio
import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application, HTTPError, RequestHandler

from pipeline.core.errors import ConfigError, PipelineError, ServingError
from pipeline.serve.client.client import Client
from pipeline.serve.page.api import Api
from pipeline.serve.page.item_table import IMAGE_TYPES, ItemColumns, ItemTable
from pipeline.serve.triton.ports import ipv4_address

STATIC = Path(__file__).parent / "static"
FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
DEFAULT_PORT = 8003
MAX_BODY_BYTES = 1 << 18
MAX_CONNECTIONS = 200
IDLE_SECONDS = 10
"""Time after which a silent connection is closed."""
# allows no other host except for pictures, no inline script or style, no frame around the page
_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "pipeline",
}


class Page:
    """Listens from its construction, and answers from `open` to the end of the `with` block."""

    def __init__(self, host: str, port: int) -> None:
        """Bind the port, a free one for 0. ServingError if that fails."""
        address = ipv4_address(host)
        try:
            self._socket = socket.create_server((address, port), backlog=128)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ServingError(
                f"cannot listen on {host}:{port} for the page: {reason}. Choose another "
                "--page-port (0 takes a free one)."
            ) from None
        self._socket.setblocking(False)
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self.loopback = ipaddress.ip_address(address).is_loopback
        """Whether only this machine can connect."""
        self.names = {"localhost", "127.0.0.1", address, host}
        shown = "127.0.0.1" if address == "0.0.0.0" else address  # noqa: S104  compared only
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}/"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()
        self._socket.close()

    def open(
        self,
        repository: Path,
        grpc_url: str,
        *,
        key: str | None = None,
        follow: bool,
        items: ItemColumns | None = None,
    ) -> ItemTable:
        """Answer requests for `repository`, which the Triton at `grpc_url` serves; see `Api`.

        Return the table of `items`.
        """

        def connect(name: str) -> Client:
            # only tritonclient's gRPC client can be shared by threads
            return Client(f"grpc://{grpc_url}", name=name, key=key)

        api = Api(repository, connect, follow=follow, items=items)
        self.start(api)
        return api.table

    def start(self, api: Api) -> None:
        """Answer requests with `api`."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(api)), daemon=True)
        self._thread.start()
        self._started.wait()

    async def _serve(self, api: Api) -> None:
        routes = [
            (r"/api/model", _ModelHandler),
            (r"/api/items", _ItemsHandler),
            (r"/api/recommend", _RecommendHandler),
            (r"/image", _ImageHandler),
            (r"/(page\.css|page\.js|icon\.svg|)", _FileHandler),
        ]
        application = Application(
            [(path, handler, {"page": self, "api": api}) for path, handler in routes],
            default_handler_class=_Handler,
            default_handler_args={"page": self, "api": api},
            log_function=lambda _: None,
            policy=content_security_policy(api.table.image_sources),
        )
        server = _Server(
            application,
            # a slightly too large body is read, so that the client reads the refusal
            max_body_size=4 * MAX_BODY_BYTES,
            idle_connection_timeout=IDLE_SECONDS,
            body_timeout=IDLE_SECONDS,
        )
        server.add_socket(self._socket)
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._stopped.wait()
        server.stop()
        await server.close_all_connections()


class _Server(HTTPServer):
    """Server that closes its oldest connection for a new one above the limit."""

    def initialize(self, *arguments: Any, **options: Any) -> None:
        super().initialize(*arguments, **options)
        self._streams: dict[IOStream, None] = {}

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        for other in list(self._streams):
            if other.closed() or len(self._streams) >= MAX_CONNECTIONS:
                del self._streams[other]
                other.close()
        self._streams[stream] = None
        super().handle_stream(stream, address)


def content_security_policy(image_sources: Sequence[str]) -> str:
    """Return the header's value; pictures may also come from `image_sources`."""
    if not image_sources:
        return _POLICY
    return f"{_POLICY}; img-src 'self' {' '.join(image_sources)}"


class _RefusedError(HTTPError):
    """Error that the client can fix, with one line that says how."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(status)
        self.line = line


class _Handler(RequestHandler):
    """Checks of every request, and errors as JSON."""

    def initialize(self, page: Page, api: Api) -> None:
        self.page, self.api = page, api

    def set_default_headers(self) -> None:
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.set_header("Content-Security-Policy", self.application.settings["policy"])

    def prepare(self) -> None:
        """Refuse requests of other sites' pages, by Origin and, against DNS rebinding, by Host."""
        if self.page.loopback and self.request.host_name not in self.page.names:
            line = f"This server is {self.page.url} and answers under no other name."
            raise _RefusedError(HTTPStatus.MISDIRECTED_REQUEST, line)
        origin = self.request.headers.get("Origin")
        if origin is not None and origin != f"http://{self.request.host}":
            raise _RefusedError(HTTPStatus.FORBIDDEN, "Pages of other sites are refused.")
        if len(self.request.body) > MAX_BODY_BYTES:
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The request has {len(self.request.body)} bytes, expected up to {MAX_BODY_BYTES}.",
            )
        if type(self) is _Handler:  # no route
            raise _RefusedError(HTTPStatus.NOT_FOUND, "Unknown address. The page is at /.")

    async def respond(self, call: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        """Run `call`, which may wait for Triton, in another thread and send its result."""
        try:
            result = await asyncio.to_thread(call, *arguments)
        except ConfigError as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from None
        except PipelineError as error:
            raise _RefusedError(HTTPStatus.BAD_GATEWAY, str(error)) from None
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps(result, allow_nan=False))

    def write_error(self, status_code: int, **arguments: Any) -> None:
        """Send the error as JSON, with its own line or the phrase of its status."""
        error = arguments.get("exc_info", (None, None, None))[1]
        line = getattr(error, "line", HTTPStatus(status_code).phrase)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"error": " ".join(line.split())}))


class _FileHandler(_Handler):
    def get(self, path: str) -> None:
        name, content_type = FILES[path]
        self.set_header("Content-Type", content_type)
        self.write((STATIC / name).read_bytes())


class _ImageHandler(_Handler):
    async def get(self) -> None:
        file = self.api.table.image_file(self.get_query_argument("item", ""))
        if file is None:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "The item has no picture file.")
        content = await asyncio.to_thread(file.read_bytes)
        self.set_header("Content-Type", IMAGE_TYPES[file.suffix.lower()])
        self.write(content)


class _ModelHandler(_Handler):
    async def get(self) -> None:
        await self.respond(self.api.model)


class _ItemsHandler(_Handler):
    async def get(self) -> None:
        names = self.request.query_arguments
        await self.respond(self.api.items, {name: self.get_query_argument(name) for name in names})


class _RecommendHandler(_Handler):
    async def post(self) -> None:
        content_type = self.request.headers.get("Content-Type", "").split(";")[0].strip()
        if content_type.lower() != "application/json":
            # no form of another site can send this content type
            raise _RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The request is no application/json."
            )
        try:
            request = json.loads(self.request.body)
        except (ValueError, RecursionError):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "The request is no JSON.") from None
        await self.respond(self.api.recommend, request)
