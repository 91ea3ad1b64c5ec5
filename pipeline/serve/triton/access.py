"""Who may ask a server: a key in a header, and the files of TLS."""

import os
import re
import stat
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from pipeline.core.errors import ConfigError

KEY_HEADER = "pipeline-key"
"""Of HTTP; gRPC's has a prefix of Triton's choice."""
GRPC_PREFIX = "triton-grpc-protocol-"
LEAST_KEY = 16
_KEY = re.compile(rf"[!-~]{{{LEAST_KEY},1024}}")


class Tls(NamedTuple):
    """PEM files of a server that speaks gRPC over TLS."""

    cert: Path
    """Certificate, with those between it and the authority."""
    key: Path
    client_ca: Path | None = None
    """Authority of the clients; with it nobody is let in without a certificate."""


def tls_of(cert: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    """None where no file is given. ConfigError for a certificate without its key, or no such."""
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise ConfigError("TLS takes both --tls-cert and --tls-key.")
    return Tls(cert, key, client_ca)


class Access(NamedTuple):
    """What a client shows, and whom it trusts."""

    key: str | None = None
    ca: str | Path | None = None
    """PEM of the authority that the server's certificate must be of; the system's without it."""
    cert: str | Path | None = None
    cert_key: str | Path | None = None

    def headers(self, protocol: str) -> dict[str, str]:
        """Headers that each request carries, of `http` or `grpc`."""
        if self.key is None:
            return {}
        return {(GRPC_PREFIX if protocol == "grpc" else "") + KEY_HEADER: self.key}


def check_key(key: str, where: str = "the key") -> str:
    """The key itself. ConfigError for one that is short, or that no header can hold."""
    if not _KEY.fullmatch(key):
        raise ConfigError(
            f"{where} has {len(key)} characters, expected {LEAST_KEY} to 1024 visible ASCII "
            "characters without spaces. Make one with `openssl rand -hex 32`."
        )
    return key


def read_key(path: Path) -> str:
    """The key that stands in a file, white space around it left out. ConfigError without one."""
    return check_key(read_file(path, "a key").decode("ascii", "replace").strip(), str(path))


def readable_by_others(path: Path) -> bool:
    """Whether users of this machine other than the file's own group may read it."""
    return bool(path.stat().st_mode & stat.S_IROTH)


def read_file(path: str | Path, what: str) -> bytes:
    """Content of a file. ConfigError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. Expected a file with {what}."
        ) from None


def check_tls(tls: Tls) -> Tls:
    """The same with absolute paths. ConfigError for files that hold no PEM of their kind.

    Triton itself would start and then refuse every connection.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for path in filter(None, tls):
        read_file(path, "PEM")
    try:
        # a key with a password would be asked for at the terminal
        context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"{tls.cert} and {tls.key} are no certificate and its key in PEM without a password: "
            f"{_reason(error)}."
        ) from None
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"{tls.client_ca} holds no certificate in PEM: {_reason(error)}."
            ) from None
    return Tls(*(None if path is None else path.absolute() for path in tls))  # type: ignore[arg-type]


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an IPv4 address."""
    return ip_address(address).is_loopback


def _reason(error: Exception) -> str:
    import ssl

    if isinstance(error, ssl.SSLError):  # whose number is none of the system's
        return error.reason or "OpenSSL cannot read them"
    return os.strerror(getattr(error, "errno", 0) or 0)
