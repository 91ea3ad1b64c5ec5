"""What serves and what asks: `pipeline serve` and `recommend`."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from pipeline.console import json_option, path_type, print_result


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
@click.option("--log", "log_path", type=path_type, help="File for Triton's log.")
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
@json_option
def serve(
    repository: Path,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    log_path: Path | None,
    reload_seconds: int | None,
    with_page: bool,
    page_port: int | None,
    as_json: bool,
) -> None:
    """Start Triton on the model REPOSITORY and stop it on Ctrl-C or SIGTERM."""
    from pipeline.core.errors import ServingError
    from pipeline.serve.ports import Ports
    from pipeline.serve.run import describe, running_server, wait_for_signal

    if page_port is not None and not with_page:
        raise click.UsageError("--page-port goes with --page.")
    ports = Ports(http=http_port, grpc=grpc_port, metrics=metrics_port)
    page = None
    with ExitStack() as stack:
        if with_page:
            from pipeline.serve.page.server import DEFAULT_PORT, Page

            # before Triton, which takes seconds to start: the port may be taken
            page = stack.enter_context(Page(host, DEFAULT_PORT if page_port is None else page_port))
        server = stack.enter_context(
            running_server(
                repository, ports=ports, host=host, log_path=log_path, reload_seconds=reload_seconds
            )
        )
        if page is not None:
            page.open(repository, server.grpc_url, follow=reload_seconds is not None)
        facts = describe(repository, server, page.url if page else None)
        lines = [f"Ready: {facts['http']}  {facts['grpc']}  metrics {facts['metrics']}"]
        lines += [f"Page: {facts['page']}"] if page else []
        print_result(facts, as_json, "\n".join([*lines, "Stop with Ctrl-C."]))
        sys.stdout.flush()
        if not wait_for_signal(server):
            raise ServingError("Triton ended by itself. Give --log FILE to see why.")


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
    as_json: bool,
) -> None:
    """Ask the server at URL (http://HOST:PORT or grpc://HOST:PORT) what comes next.

    Or give the directory of a RUN, which answers the same in this process, without a server.
    """
    from pipeline.core.errors import ConfigError
    from pipeline.report import recommendations_text

    if bool(items) == bool(inputs):
        raise ConfigError("Give either --items A,B,C or --input FILE.")
    if columns and inputs:
        raise ConfigError("--column goes with --items; a file brings its own columns.")
    if sessions and items:
        raise ConfigError("--sessions goes with --input; --items are one session.")
    filters: dict[str, Any] = {
        "exclude": exclude.split(",") if exclude else None,
        "candidates": candidates.split(",") if candidates else None,
        "filter_seen": filter_seen,
    }
    with _opened(target, name) as client:
        if items:
            session = {"item_id": items.split(",")} | dict(_column(c) for c in columns)
            records = list(client.recommend([session], k, **filters).records([None]))
        else:
            records = list(client.recommend_log(list(inputs), k, sessions=sessions, **filters))
    print_result({"sessions": records}, as_json, recommendations_text(records))


def _opened(target: str, name: str | None) -> Any:
    """What answers: `pipeline.serve.client.Client`, or `LocalClient` of a run."""
    from pipeline.core.errors import ConfigError

    if "://" in target:
        from pipeline.serve.client import Client

        return Client(target, name=name or "recommender")
    if not Path(target).is_dir():
        raise ConfigError(
            f"{target!r} is no address, expected http://HOST:PORT or grpc://HOST:PORT, and there "
            "is no such directory, expected that of a run."
        )
    if name is not None:
        raise ConfigError("--name is for a server, which may have several models; a run is one.")
    from pipeline.local import open_run

    return open_run(Path(target))


def _column(text: str) -> tuple[str, list[str]]:
    name, equals, given = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--column {text!r} is not of the form NAME=V,V,...")
    return name, given.split(",")
