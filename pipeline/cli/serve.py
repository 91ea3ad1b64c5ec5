"""`pipeline serve`."""

import secrets
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.cli.console import note, print_result
from pipeline.cli.options import (
    Ab,
    ClientKeyFile,
    Json,
    LogRequests,
    LogShare,
    MaxBody,
    MaxConnections,
    MaxWaiting,
    RateLimit,
    RequestTimeout,
    read_ab,
    read_client_keys,
    read_limits,
    request_log,
)
from pipeline.core.errors import ConfigError, ServingError

if TYPE_CHECKING:
    from pipeline.serve.triton.access import ClientKey
    from pipeline.serve.trusted_copy import TrustedCopy


# Long: every option is declared here with its help.
def serve(
    repository: Annotated[
        Path, typer.Argument(metavar="REPOSITORY", help="Directory that export wrote.")
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens the server to the network.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 takes a free one.")] = 8001,
    metrics_port: Annotated[
        int, typer.Option(help="Port of Prometheus metrics; 0 takes a free one.")
    ] = 8002,
    key_file: ClientKeyFile = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="PEM certificate; gRPC then takes only TLS, and HTTP listens on this machine.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM key of the certificate.")
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM certificate authority of the clients."),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File for Triton's log; - is stderr.")
    ] = None,
    log_format: Annotated[
        Literal["default", "ISO8601"], typer.Option(help="Triton's own option of this name.")
    ] = "default",
    reload_seconds: Annotated[
        int | None,
        typer.Option(
            "--reload",
            min=1,
            metavar="SECONDS",
            help="Interval at which Triton looks for a newer export in the repository and loads "
            "it; a line on stderr reports it.",
        ),
    ] = None,
    page: Annotated[
        bool, typer.Option("--page", help="Serve a page with the catalogue and recommendations.")
    ] = False,
    page_port: Annotated[
        int | None, typer.Option(help="Port of the page; 0 takes a free one.  [default: 8003]")
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Item table of the page with names and pictures, as CSV, JSON lines or Parquet.",
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="Column of the item ids.  [default: the item column of the recipe]"),
    ] = None,
    title_column: Annotated[str | None, typer.Option(help="Column of the item names.")] = None,
    image_column: Annotated[
        str | None,
        typer.Option(
            help="Column of the pictures: addresses of http or https, or files below "
            "--image-folder."
        ),
    ] = None,
    image_folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the picture files.")
    ] = None,
    restarts: Annotated[
        int, typer.Option(min=0, help="Largest number of restarts of Triton in 10 minutes.")
    ] = 5,
    proxy: Annotated[
        bool,
        typer.Option(
            "--proxy/--no-proxy",
            help="Run a proxy in front of Triton that refuses requests which crash Triton 2.51.",
        ),
    ] = True,
    trusted_key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="KEY.pub",
            help="Serve, from a private copy, only a repository that this Ed25519 key has signed. "
            "Repeatable.",
        ),
    ] = None,
    any_code: Annotated[
        bool,
        typer.Option(
            "--any-code",
            help="Also serve a repository with Python that this version did not write.",
        ),
    ] = False,
    log_requests: LogRequests = None,
    log_share: LogShare = None,
    ab: Ab = None,
    max_body_mb: MaxBody = None,
    max_connections: MaxConnections = None,
    max_waiting: MaxWaiting = None,
    request_timeout: RequestTimeout = None,
    rate_limit: RateLimit = None,
    as_json: Json = False,
) -> None:
    """Serve a model repository with Triton until Ctrl-C or SIGTERM."""
    from pipeline.serve.proxy.limits import DEFAULT_LIMITS
    from pipeline.serve.run import describe, running_server, wait_for_signal
    from pipeline.serve.triton.access import open_to_network, read_tls
    from pipeline.serve.triton.ports import Ports, ipv4_address
    from pipeline.serve.triton.version_watch import VersionWatch

    if page_port is not None and not page:
        raise ConfigError("--page-port goes with --page.")
    limits = read_limits(
        max_body_mb=max_body_mb,
        max_connections=max_connections,
        max_waiting=max_waiting,
        request_timeout=request_timeout,
        rate_limit=rate_limit,
    )
    if (log_requests or ab or limits != DEFAULT_LIMITS) and not proxy:
        raise ConfigError(
            "--log-requests, --ab, --rate-limit, --request-timeout and --max-body-mb, "
            "--max-connections and --max-waiting are options of the proxy. Leave out --no-proxy."
        )
    logged = request_log(log_requests, log_share)
    item_columns = _item_columns(
        items, page, key=id_column, title=title_column, image=image_column, folder=image_folder
    )
    keys = _client_keys(key_file, with_page=page and proxy)
    tls = read_tls(tls_cert, tls_key, tls_client_ca)
    if line := open_to_network(ipv4_address(host), has_keys=bool(keys), tls=tls):
        note(line)
    with ExitStack() as stack:
        # the port may be taken, so it is opened before Triton, which takes seconds to start
        web_page = stack.enter_context(_page(host, page_port, bool(keys), tls)) if page else None
        copy = _trusted_copy(repository, trusted_key)
        if copy is not None:
            repository = stack.enter_context(copy).path
        experiment = None if ab is None else read_ab(ab, repository)
        server = stack.enter_context(
            running_server(
                repository,
                any_code=any_code or copy is not None,
                ports=Ports(http=http_port, grpc=grpc_port, metrics=metrics_port),
                host=host,
                log_path=log,
                log_format=log_format,
                reload_seconds=reload_seconds,
                restarts=restarts,
                keys=keys,
                tls=tls,
                proxy=proxy,
                request_log=logged,
                experiment=experiment,
                limits=limits,
            )
        )
        if web_page is not None:
            table = web_page.open(
                repository,
                server.grpc_url,
                key=keys[-1].key if keys else None,
                follow=reload_seconds is not None,
                items=item_columns,
            )
            _note_skipped_images(table.skipped_images, items)
        facts = describe(repository, server, web_page.url if web_page else None)
        ready = f"Ready: {facts['http']}  {facts['grpc']}  metrics {facts['metrics']}"
        page_line = f"\nPage: {facts['page']}" if web_page else ""
        print_result(facts, as_json, f"{ready}{page_line}\nStop with Ctrl-C.")
        sys.stdout.flush()
        if reload_seconds is not None and copy is not None:
            stack.enter_context(copy.following(reload_seconds, note))
        if reload_seconds is not None:
            stack.enter_context(VersionWatch(server, repository, reload_seconds, note))
        in_log = str(log) == "-"  # the supervisor logs each restart there
        if not wait_for_signal(server, None if in_log else note):
            where = "The log above" if in_log else log or "A --log FILE"
            raise ServingError(
                f"{server.ending or 'Triton ended by itself'}. {where} has the details."
            )


def _item_columns(
    file: Path | None,
    page: bool,
    *,
    key: str | None,
    title: str | None,
    image: str | None,
    folder: Path | None,
) -> Any:
    """Return the item table of the page with its columns, None without --items."""
    from pipeline.serve.page.item_table import ItemColumns

    if file is None:
        if (key, title, image, folder) != (None,) * 4:
            raise ConfigError(
                "--id-column, --title-column, --image-column and --image-folder go with --items."
            )
        return None
    if not page:
        raise ConfigError("--items goes with --page.")
    columns = ItemColumns(file=file, key=key, title=title, image=image, image_folder=folder)
    columns.check()
    return columns


def _note_skipped_images(count: int, items: Path | None) -> None:
    if count:
        note(
            f"{count:,} pictures of {items} are neither an http or https address nor a picture "
            "file below --image-folder; they are left out."
        )


def _trusted_copy(repository: Path, keys: list[Path] | None) -> "TrustedCopy | None":
    if not keys:
        return None
    from pipeline.core.signature import read_public_key
    from pipeline.serve.trusted_copy import TrustedCopy

    return TrustedCopy(repository, list(map(read_public_key, keys)))


def _client_keys(file: Path | None, *, with_page: bool) -> "tuple[ClientKey, ...]":
    """Return the keys of clients, and behind a proxy a key of the page as the last one.

    With its own key the page does not use up the rate limit of a client.
    """
    from pipeline.serve.triton.access import ClientKey

    keys = read_client_keys(file)
    if not keys or not with_page:
        return keys
    return (*keys, ClientKey(secrets.token_hex(32), "the page"))


def _page(host: str, port: int | None, has_keys: bool, tls: Any) -> Any:
    from pipeline.serve.page.server import DEFAULT_PORT, Page

    if tls is not None:
        raise ConfigError("The page has no TLS. Leave out --page, or --tls-cert.")
    page = Page(host, DEFAULT_PORT if port is None else port)
    if has_keys and not page.loopback:
        raise ConfigError(
            f"The page asks no key of its visitors, and --host {host} shows it to the network. "
            "Leave out --page, --key-file or --host."
        )
    return page
