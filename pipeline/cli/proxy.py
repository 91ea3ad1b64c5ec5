"""`pipeline proxy`."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.console import check_input, note, print_result
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
from pipeline.core.errors import ConfigError

_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


# Long: every option is declared here with its help.
def proxy(
    triton: Annotated[
        str, typer.Argument(metavar="HOST", help="Host of a Triton, such as a container.")
    ],
    triton_http_port: Annotated[int, typer.Option(help="HTTP port of that Triton.")] = 8000,
    triton_grpc_port: Annotated[int, typer.Option(help="gRPC port of that Triton.")] = 8001,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens the proxy to the network.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 takes a free one.")] = 8001,
    repository: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Repository of that Triton, so that requests without outputs get only lists.",
        ),
    ] = None,
    key_file: ClientKeyFile = None,
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
    """Forward requests to a Triton that runs elsewhere, and refuse those that crash it.

    `pipeline serve` runs this proxy in front of its own Triton.
    """
    from pipeline.serve.proxy.proxy import Proxy, ProxyOptions
    from pipeline.serve.triton.access import open_to_network
    from pipeline.serve.triton.ports import Ports, fill_ports, ipv4_address

    limits = read_limits(
        max_body_mb=max_body_mb,
        max_connections=max_connections,
        max_waiting=max_waiting,
        request_timeout=request_timeout,
        rate_limit=rate_limit,
    )
    logged = request_log(log_requests, log_share)
    if (logged or ab) and repository is None:
        raise ConfigError(
            "--log-requests and --ab need --repository, which lists the models that recommend."
        )
    if repository is not None:
        check_input(repository, "repository")
    address = ipv4_address(host)
    ports = fill_ports(Ports(http=http_port, grpc=grpc_port, metrics=0))
    keys = read_client_keys(key_file)
    if line := open_to_network(address, has_keys=bool(keys), tls=None):
        note(line)
    server = Proxy(
        ProxyOptions(
            http_host=address,
            grpc_host=address,
            ports=ports,
            repository=repository,
            triton_host=triton,
            triton_ports=Ports(http=triton_http_port, grpc=triton_grpc_port, metrics=0),
            keys=keys,
            tls=None,
            limits=limits,
            request_log=logged,
            experiment=None if ab is None or repository is None else read_ab(ab, repository),
        )
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    server.start()
    facts = {"http": f"http://{host}:{ports.http}", "grpc": f"grpc://{host}:{ports.grpc}"}
    text = f"Ready: {facts['http']}  {facts['grpc']}  for the Triton of {triton}."
    print_result(facts, as_json, f"{text}\nStop with Ctrl-C.")
    sys.stdout.flush()
    signal.sigwait(_STOP_SIGNALS)
    server.stop()
