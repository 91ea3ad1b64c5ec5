"""Certificates for tests, by the `openssl` command."""

import subprocess
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """A certificate and its key, PEM files."""

    cert: Path
    key: Path


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


def make_authority(directory: Path, name: str) -> Pair:
    """An authority that signs itself."""
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "2", "-subj", f"/CN={name}", "-out", pair.cert, "-keyout", pair.key),
    )
    return pair


def make_certificate(authority: Pair, name: str) -> Pair:
    """One for 127.0.0.1, of that authority."""
    directory = authority.cert.parent
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    request, names = directory / f"{name}.csr", directory / f"{name}.ext"
    names.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", f"/CN={name}", "-out", request, "-keyout", pair.key),
    )
    openssl(
        *("x509", "-req", "-days", "2", "-in", request, "-extfile", names, "-CAcreateserial"),
        *("-CA", authority.cert, "-CAkey", authority.key, "-out", pair.cert),
    )
    return pair
