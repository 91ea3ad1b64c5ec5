"""What serves and what asks: `pipeline serve` and `recommend`."""

import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import click

from pipeline.cli.console import file_option, json_option, path_type, print_result
from pipeline.core.errors import ConfigError, ServingError


@click.command(epilog="Example: pipeline serve repository --http-port 8000")
@click.argument("repository", type=path_type)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 opens the server to the network.",
)
@click.option("--http-port", default=8000, show_default=True, help="0 takes a free one.")
@click.option("--grpc-port", default=8001, show_default=True, help="0 takes a free one.")
@click.option("--metrics-port", default=8002, show_default=True, help="0 takes a free one.")
@file_option("--key-file", "Answer only who sends the key that stands in FILE; health stays open.")
@file_option(
    "--tls-cert", "PEM certificate: gRPC takes TLS alone then, and HTTP this machine alone."
)
@file_option("--tls-key", "PEM key of the certificate.")
@file_option("--tls-client-ca", "PEM authority whose certificate a client must have.")
@click.option("--log", "log_path", type=path_type, help="File for Triton's log; - is stderr.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: one object a record and line.",
)
@click.option(
    "--reload",
    "reload_seconds",
    type=click.IntRange(1),
    metavar="SECONDS",
    help="Look that often for a newer export in the same place, and serve it.",
)
@click.option(
    "--page",
    "with_page",
    is_flag=True,
    help="Serve a page too, on which one clicks through the catalogue.",
)
@click.option("--page-port", type=int, help="Of the page; 0 takes a free one.  [default: 8003]")
@click.option(
    "--restarts",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="How often in 10 minutes a Triton that a signal ended comes back.",
)
@json_option
def serve(
    repository: Path,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    key_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    log_path: Path | None,
    log_format: Literal["text", "json"],
    reload_seconds: int | None,
    with_page: bool,
    page_port: int | None,
    restarts: int,
    as_json: bool,
) -> None:
    """Start Triton on the model REPOSITORY and stop it on Ctrl-C or SIGTERM."""
    from pipeline.serve.run import describe, running_server, wait_for_signal
    from pipeline.serve.triton.access import tls_of
    from pipeline.serve.triton.ports import Ports

    if page_port is not None and not with_page:
        raise click.UsageError("--page-port goes with --page.")
    if log_format == "json" and log_path is None:
        raise click.UsageError("--log-format json goes with --log FILE, or --log - for stderr.")
    key, tls = _key(key_file), tls_of(tls_cert, tls_key, tls_client_ca)
    page = None
    with ExitStack() as stack:
        if with_page:
            from pipeline.serve.page.server import DEFAULT_PORT, Page

            if tls is not None:
                raise ConfigError("The page has no TLS. Leave out --page, or --tls-cert.")
            # before Triton, which takes seconds to start: the port may be taken
            page = stack.enter_context(Page(host, DEFAULT_PORT if page_port is None else page_port))
            if key is not None and not page.loopback:
                raise ConfigError(
                    f"The page asks no key of who opens it, and --host {host} shows it to the "
                    "network. Leave out --page, --key-file or --host."
                )
        server = stack.enter_context(
            running_server(
                repository,
                ports=Ports(http=http_port, grpc=grpc_port, metrics=metrics_port),
                host=host,
                log_path=log_path,
                log_format=log_format,
                reload_seconds=reload_seconds,
                restarts=restarts,
                key=key,
                tls=tls,
            )
        )
        if page is not None:
            page.open(repository, server.grpc_url, key=key, follow=reload_seconds is not None)
        facts = describe(repository, server, page.url if page else None)
        lines = [f"Ready: {facts['http']}  {facts['grpc']}  metrics {facts['metrics']}"]
        lines += [f"Page: {facts['page']}"] if page else []
        print_result(facts, as_json, "\n".join([*lines, "Stop with Ctrl-C."]))
        sys.stdout.flush()
        in_log = str(log_path) == "-"  # where the supervisor writes of each restart
        if not wait_for_signal(server, None if in_log else _tell):
            reason = server.ending or "Triton ended by itself"
            where = "The log above" if in_log else log_path or "A --log FILE"
            raise ServingError(f"{reason}. {where} tells more.")


def _tell(line: str) -> None:
    with suppress(OSError, ValueError):  # a terminal that was closed must not end the server
        click.echo(line, err=True)


@click.command(
    epilog="Example: pipeline recommend http://127.0.0.1:8000 --items 214716935,214832672"
)
@click.argument("target", metavar="URL|RUN")
@click.option("--items", help="Item ids of one session, oldest first: A,B,C.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME=V,V,...",
    help="Another column of that session, one value an interaction. Repeatable.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    type=path_type,
    metavar="FILE",
    help="Log of raw interactions, its columns as the recipe names them. Repeatable.",
)
@click.option(
    "--sessions", type=click.IntRange(1), help="Ask for the first N sessions of the log alone."
)
@click.option("--k", type=int, help="Items of a list.")
@click.option("--exclude", metavar="A,B", help="Item ids that no list holds.")
@click.option("--candidates", metavar="A,B", help="The only item ids that lists hold.")
@click.option(
    "--filter-seen/--keep-seen",
    default=None,
    help="Whether items of the session itself are left out.  [default: as the recipe says]",
)
@click.option("--name", help="Model of the server to ask.  [default: recommender]")
@file_option("--key-file", "The key of the server.")
@file_option(
    "--ca", "PEM authority of the server's certificate, for grpcs.  [default: the system's]"
)
@file_option("--cert", "PEM certificate of the client.")
@file_option("--cert-key", "PEM key of that certificate.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="How long an answer of a server may take.  [default: 30]",
)
@json_option
def recommend(
    target: str,
    items: str | None,
    columns: tuple[str, ...],
    inputs: tuple[Path, ...],
    sessions: int | None,
    k: int | None,
    exclude: str | None,
    candidates: str | None,
    filter_seen: bool | None,
    name: str | None,
    key_file: Path | None,
    as_json: bool,
    **connection: Any,
) -> None:
    """Ask the server at URL what comes next: http://HOST:PORT, grpc://HOST:PORT, grpcs with TLS.

    Or give the directory of a RUN, which answers the same in this process, without a server.
    """
    from pipeline.cli.results import recommendations_text

    if bool(items) == bool(inputs):
        raise ConfigError("Give either --items A,B,C or --input FILE.")
    if columns and inputs:
        raise ConfigError("--column goes with --items; a file brings its own columns.")
    if sessions and items:
        raise ConfigError("--sessions goes with --input; --items are one session.")
    filters: dict[str, Any] = {
        "exclude": exclude.split(",") if exclude else None,
        # an empty list is a choice of nothing, not of the whole catalogue
        "candidates": None if candidates is None else [c for c in candidates.split(",") if c],
        "filter_seen": filter_seen,
    }
    with _opened(target, name, _key(key_file), connection) as client:
        if items:
            session = {"item_id": items.split(",")} | dict(_column(c) for c in columns)
            records = list(client.recommend([session], k, **filters).records([None]))
        else:
            records = list(client.recommend_log(list(inputs), k, sessions=sessions, **filters))
    print_result({"sessions": records}, as_json, recommendations_text(records))


def _opened(target: str, name: str | None, key: str | None, connection: dict[str, Any]) -> Any:
    """What answers: `pipeline.serve.client.client.Client`, or `LocalClient` of a run."""
    if "://" in target:
        from pipeline.serve.client.client import Client

        given = {name: value for name, value in connection.items() if value is not None}
        return Client(target, name=name or "recommender", key=key, **given)
    if not Path(target).is_dir():
        raise ConfigError(
            f"{target!r} is no address, expected http://HOST:PORT, grpc://HOST:PORT or "
            "grpcs://HOST:PORT, and there is no such directory, expected that of a run."
        )
    if name is not None:
        raise ConfigError("--name is for a server, which may have several models; a run is one.")
    for option, value in {"key_file": key, **connection}.items():
        if value is not None:
            raise ConfigError(f"--{option.replace('_', '-')} is for a server; {target} is a run.")
    from pipeline.in_process import open_run

    return open_run(Path(target))


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    from pipeline.serve.triton.access import read_key, readable_by_others

    key = read_key(path)
    if readable_by_others(path):
        click.echo(
            f"Warning: others on this machine can read {path}; `chmod 600 {path}`.", err=True
        )
    return key


def _column(text: str) -> tuple[str, list[str]]:
    name, equals, given = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--column {text!r} is not of the form NAME=V,V,...")
    return name, given.split(",")
