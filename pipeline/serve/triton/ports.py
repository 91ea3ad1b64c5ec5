"""TCP ports of a server, found and checked before it starts."""

import errno
import socket
from dataclasses import astuple, dataclass, fields

from pipeline.core.errors import ServingError


@dataclass(frozen=True, kw_only=True)
class Ports:
    """TCP ports of one server; 0 takes a free one."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def __post_init__(self) -> None:
        chosen = [port for port in astuple(self) if port]
        if len(set(chosen)) < len(chosen) or not all(0 < port < 65536 for port in chosen):
            raise ServingError(
                f"ports are http {self.http}, grpc {self.grpc}, metrics {self.metrics}; expected"
                " three different ones from 1 to 65535, or 0 for a free one"
            )


def free_ports() -> Ports:
    """Three loopback ports that nothing listens on now; another program may still take them."""
    # All three are held until the last is found, so that none is found twice.
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for held in (a, b, c):
            held.bind(("127.0.0.1", 0))
        http_port, grpc_port, metrics_port = (held.getsockname()[1] for held in (a, b, c))
    return Ports(http=http_port, grpc=grpc_port, metrics=metrics_port)


def ipv4_address(host: str) -> str:
    """The IPv4 address of a host: given a name, Triton starts but nobody can connect."""
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise ServingError(f"host {host!r} has no IPv4 address: {error}") from error


def filled(ports: Ports) -> Ports:
    """The same ports with a free one in place of each 0."""
    if all(astuple(ports)):
        return ports
    free = free_ports()
    return Ports(
        http=ports.http or free.http,
        grpc=ports.grpc or free.grpc,
        metrics=ports.metrics or free.metrics,
    )


def check_ports(host: str, ports: Ports, *, http_host: str | None = None) -> None:
    """Say at once what Triton would say only after it has loaded all models.

    `http_host` is the address of HTTP where it has one of its own.
    """
    for protocol in fields(ports):
        port = getattr(ports, protocol.name)
        address = http_host if http_host and protocol.name == "http" else host
        with socket.socket() as probe:
            # As Triton does: a port whose last connections are still closing counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                found = f"cannot listen on {address}:{port} for {protocol.name}"
                if error.errno == errno.EADDRINUSE:
                    raise ServingError(
                        f"{found}: the port is already in use; stop what listens there, or choose"
                        " another port (0 takes a free one)"
                    ) from error
                raise ServingError(f"{found}: {error.strerror or error}") from error
