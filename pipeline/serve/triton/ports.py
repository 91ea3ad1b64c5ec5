"""TCP ports of a server, chosen and checked before it starts."""

import errno
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass, fields, replace

from pipeline.core.errors import ServingError


@dataclass(frozen=True, kw_only=True)
class Ports:
    """TCP ports of one server; 0 stands for any free one."""

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
    """Return three loopback ports without a listener; another program may still take them."""
    return fill_ports(Ports(http=0, grpc=0, metrics=0))


def fill_ports(ports: Ports, *, others: Sequence[int] = ()) -> Ports:
    """Return the ports with a free one for each 0, none of which is one of `others`."""
    with ExitStack() as stack:  # all are bound until the last is chosen, so that they differ
        for port in (*astuple(ports), *others):
            if port:
                held = stack.enter_context(socket.socket())
                with suppress(OSError):  # in use, so it is not chosen either
                    held.bind(("127.0.0.1", port))
        chosen = {}
        for protocol in (field.name for field in fields(ports) if not getattr(ports, field.name)):
            held = stack.enter_context(socket.socket())
            held.bind(("127.0.0.1", 0))
            chosen[protocol] = held.getsockname()[1]
    return replace(ports, **chosen)


def inner_ports(ports: Ports) -> Ports:
    """Return free loopback ports for a Triton behind a proxy; the port of metrics stays."""
    return fill_ports(Ports(http=0, grpc=0, metrics=ports.metrics), others=(ports.http, ports.grpc))


def ipv4_address(host: str) -> str:
    """Return the IPv4 address of a host, as Triton accepts no connections to a name."""
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise ServingError(f"host {host!r} has no IPv4 address: {error}") from error


def check_ports(host: str, ports: Ports, *, http_host: str) -> None:
    """ServingError for a port in use, which Triton reports only after loading all models."""
    for protocol in fields(ports):
        port = getattr(ports, protocol.name)
        address = http_host if protocol.name == "http" else host
        with socket.socket() as listener:
            # as in Triton: a port whose last connections are still closing counts as free
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((address, port))
            except OSError as error:
                reason = error.strerror or str(error)
                if error.errno == errno.EADDRINUSE:
                    reason = (
                        "the port is already in use; stop what listens there, or choose another"
                        " port (0 takes a free one)"
                    )
                raise ServingError(
                    f"cannot listen on {address}:{port} for {protocol.name}: {reason}"
                ) from error
