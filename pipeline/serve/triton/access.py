"""Access to a server: a key in a header, and PEM files for TLS."""

import errno
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from pipeline.core.errors import ConfigError
from pipeline.core.files import read_small

KEY_HEADER = "pipeline-key"
"""HTTP header of the client's key; gRPC adds a prefix that Triton prescribes."""
MIN_RATE = 0.001
"""Lowest rate of a client, in requests a second."""
PROXY_KEY_HEADER = "proxy-key"
"""Header of the key between proxy and Triton."""
GRPC_PREFIX = "triton-grpc-protocol-"
MIN_KEY_LENGTH, MAX_KEY_LENGTH = 16, 1024

PemPath = str | Path | None


class Tls(NamedTuple):
    """PEM files of a server that speaks gRPC over TLS."""

    cert: Path
    """Certificate, followed by the intermediate ones."""
    key: Path
    client_ca: Path | None = None
    """Certificate authority of the clients; with it, each client needs a certificate."""


class ClientKey(NamedTuple):
    """Key of one client, or of several that share it."""

    key: str
    name: str = "key"
    """Name in the log."""
    rate: float | None = None
    """Requests a second, None for the server's `--rate-limit`."""


class Access(NamedTuple):
    """Credentials of a client, and the certificate authority that it trusts."""

    key: str | None = None
    ca: PemPath = None
    """PEM of the server's certificate authority, None for the system's authorities."""
    cert: PemPath = None
    cert_key: PemPath = None

    def headers(self, protocol: str) -> dict[str, str]:
        """Return the headers of each request over `http` or `grpc`."""
        if self.key is None:
            return {}
        return {(GRPC_PREFIX if protocol == "grpc" else "") + KEY_HEADER: self.key}


NO_ACCESS = Access()
"""Access of a client without key and certificates."""


def check_key(key: str, where: str = "the key") -> str:
    """Return the key. ConfigError for one that is too short or cannot stand in a header."""
    is_visible = key.isascii() and key.isprintable() and " " not in key
    if not is_visible or not MIN_KEY_LENGTH <= len(key) <= MAX_KEY_LENGTH:
        raise ConfigError(
            f"{where} has {len(key)} characters, expected {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} "
            "visible ASCII characters without spaces. Make one with `openssl rand -hex 32`."
        )
    return key


def read_key(path: Path) -> str:
    """Return the key in a client's file. ConfigError without one."""
    return read_keys(path)[0].key


def read_keys(path: Path) -> tuple[ClientKey, ...]:
    """Return the keys of a server's file: one key, or lines of a name, a key and optionally a rate.

    Empty lines and lines that begin with # are skipped. ConfigError for other lines, and for a
    duplicate name or key.
    """
    try:
        text = read_small(path).decode("ascii", "replace")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. Expected a file with a key."
        ) from None
    rows = [[] if line.lstrip().startswith("#") else line.split() for line in text.splitlines()]
    if sum(map(len, rows)) <= 1:
        return (ClientKey(check_key("".join(w for words in rows for w in words), str(path))),)
    keys = [
        _client_key(words, f"{path}, line {number}")
        for number, words in enumerate(rows, 1)
        if words
    ]
    for what in ("name", "key"):
        values = [getattr(key, what) for key in keys]
        if len(set(values)) < len(values):
            raise ConfigError(f"{path} has a {what} twice. Each key is one line: NAME KEY.")
    return tuple(keys)


def _client_key(words: list[str], where: str) -> ClientKey:
    if not 2 <= len(words) <= 3:
        raise ConfigError(
            f"{where} has {len(words)} words, expected a name, a key, and requests a second or "
            "nothing: `shop 5f3c...` or `shop 5f3c... 50`."
        )
    name, key, *rates = words
    rate = None
    if rates:
        try:
            rate = float(rates[0])
        except ValueError:
            rate = 0.0
        if not MIN_RATE <= rate < float("inf"):  # the word may be a key, so it is not shown
            raise ConfigError(f"{where}: the third word is no number of requests a second.")
    return ClientKey(check_key(key, f"the key of {where}"), name, rate)


def read_pem(ca: PemPath, cert: PemPath, cert_key: PemPath) -> tuple[bytes | None, ...]:
    """Return the contents of PEM files, None for each that is None.

    ConfigError for a file that cannot be read or is not PEM, for a certificate and a key that do
    not match, and for a key with a password. gRPC and Triton would start with such files and then
    refuse every connection.
    """
    paths = (ca, cert, cert_key)
    try:
        contents = [None if path is None else read_small(Path(path)) for path in paths]
        if b"" in contents:  # such as a pipe, on which OpenSSL would block
            raise OSError(errno.EINVAL, "one of them is empty")
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            # without `password`, OpenSSL would ask for one at the terminal
            context.load_cert_chain(cert, cert_key, password=lambda: "")
    except OSError as error:  # ssl.SSLError is one
        files = ", ".join(str(path) for path in paths if path is not None)
        reason = getattr(error, "reason", None) or error.strerror or "OpenSSL cannot read them"
        raise ConfigError(
            f"{files}: {reason}. Expected PEM files: an authority, or a certificate and its key "
            "without a password."
        ) from None
    return tuple(contents)


def read_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    """Return the TLS files of a server, None without any. ConfigError as in `read_pem`."""
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise ConfigError("TLS takes both --tls-cert and --tls-key.")
    read_pem(client_ca, cert, key)
    return Tls(cert.absolute(), key.absolute(), client_ca and client_ca.absolute())


def open_to_network(address: str, *, has_keys: bool, tls: Tls | None) -> str | None:
    """Return a warning if every machine that reaches the server may use it, else None."""
    if ip_address(address).is_loopback or has_keys:
        return None
    if tls is not None and tls.client_ca is not None:
        return None
    return (
        f"Warning: the server listens on {address} without a key. Each machine that reaches it can "
        "send requests and read the catalogue: set --key-file FILE, or let a firewall choose."
    )
