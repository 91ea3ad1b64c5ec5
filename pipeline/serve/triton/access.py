"""Access to a server: key in a header, and PEM files of TLS."""

import errno
import hmac
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from pipeline.core.errors import ConfigError
from pipeline.core.files import read_small

KEY_HEADER = "pipeline-key"
"""Name of the HTTP header; gRPC's has a prefix that Triton prescribes."""
GRPC_PREFIX = "triton-grpc-protocol-"
MIN_KEY_LENGTH, MAX_KEY_LENGTH = 16, 1024

PemPath = str | Path | None


class Tls(NamedTuple):
    """PEM files of a server that speaks gRPC over TLS."""

    cert: Path
    """Certificate, followed by those between it and the authority."""
    key: Path
    client_ca: Path | None = None
    """Authority of the clients; with it, each client needs a certificate."""


class Access(NamedTuple):
    """Credentials of a client, and the authority that it trusts."""

    key: str | None = None
    ca: PemPath = None
    """PEM of the authority of the server's certificate; the system's authorities without it."""
    cert: PemPath = None
    cert_key: PemPath = None

    def headers(self, protocol: str) -> dict[str, str]:
        """Headers of each request over `http` or `grpc`."""
        if self.key is None:
            return {}
        return {(GRPC_PREFIX if protocol == "grpc" else "") + KEY_HEADER: self.key}


NO_ACCESS = Access()
"""Access of a client without key and certificates."""


def check_key(key: str, where: str = "the key") -> str:
    """Return the key. ConfigError for one that is short or that no header can hold."""
    is_visible = key.isascii() and key.isprintable() and " " not in key
    if not is_visible or not MIN_KEY_LENGTH <= len(key) <= MAX_KEY_LENGTH:
        raise ConfigError(
            f"{where} has {len(key)} characters, expected {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} "
            "visible ASCII characters without spaces. Make one with `openssl rand -hex 32`."
        )
    return key


def read_key(path: Path) -> str:
    """Return the key in a file, the first of several. ConfigError without one."""
    return next(iter(read_keys(path).values()))


def read_keys(path: Path) -> dict[str, str]:
    """Return the keys in a file by their names. ConfigError for a file that is damaged.

    Each line is KEY or KEY NAME; the name of a key without one is its number.
    """
    try:
        text = read_small(path).decode("ascii", "replace")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. Expected a file with a key."
        ) from None
    lines = [line.split() for line in text.splitlines() if line.strip()]
    keys: dict[str, str] = {}
    for number, words in enumerate(lines or [[""]], 1):
        where = str(path) if len(lines) < 2 else f"{path}, key {number}"
        if len(words) > 2:
            raise ConfigError(
                f"{where}: the line has {len(words)} words, expected KEY or KEY NAME."
            )
        name = words[1] if len(words) == 2 else f"key {number}"
        if name in keys or words[0] in keys.values():
            raise ConfigError(f"{where}: the key or its name {name} is there twice.")
        keys[name] = check_key(words[0], where)
    return keys


class Keys:
    """Keys of clients, and the one that Triton takes in their place."""

    def __init__(self, keys: Mapping[str, str], triton_key: str) -> None:
        self._keys = [(key.encode(), name) for name, key in keys.items()]
        self.triton_key = triton_key.encode()

    def name_of(self, sent: bytes) -> str | None:
        """Return the name of the key that a client sent, None for none of them.

        The time says nothing about the keys.
        """
        name = None
        for key, of_key in self._keys:
            if hmac.compare_digest(sent, key):
                name = of_key
        return name


def read_pem(ca: PemPath, cert: PemPath, cert_key: PemPath) -> tuple[bytes | None, ...]:
    """Return the contents of PEM files, None for each that is None.

    ConfigError for a file that cannot be read or holds something else, for a certificate and a key
    that do not belong together, and for a key with a password. gRPC and Triton would start with
    such files and then refuse every connection.
    """
    paths = (ca, cert, cert_key)
    try:
        contents = [None if path is None else read_small(Path(path)) for path in paths]
        if b"" in contents:  # OpenSSL opens the file itself, and would wait for a pipe
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
    """Return the files of a server, None without any. ConfigError as of `read_pem`."""
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise ConfigError("TLS takes both --tls-cert and --tls-key.")
    read_pem(client_ca, cert, key)
    return Tls(cert.absolute(), key.absolute(), client_ca and client_ca.absolute())


def open_to_network(address: str, key: str | None, tls: Tls | None) -> str | None:
    """Line about a server that answers every machine which reaches it; None for others."""
    if ip_address(address).is_loopback or key is not None:
        return None
    if tls is not None and tls.client_ca is not None:
        return None
    return (
        f"Warning: the server listens on {address} without a key. Each machine that reaches it can "
        "send requests and read the catalogue: set --key-file FILE, or let a firewall choose."
    )
