"""Signatures of artifacts by Ed25519 (RFC 8032).

The manifest has the SHA-256 of every file, so its signature covers the whole artifact. Keys are PEM
files, as `openssl genpkey -algorithm ed25519` writes them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.files import read_small, sync
from pipeline.core.manifest import MANIFEST, SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

_PURPOSE = b"pipeline artifact\n"
"""Prefix of the signed bytes, so that a signature for another purpose is not valid here."""
_MAX_KEY_BYTES = 1 << 16


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """Read the key of `--sign`. ConfigError for a file that is no Ed25519 private key."""
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    made = "openssl genpkey -algorithm ed25519 -out key.pem"
    try:
        key = load_pem_private_key(_read(path, made), None)
    except (ValueError, TypeError):  # TypeError: with a password
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(
            f"{path} is no Ed25519 private key in PEM without a password. Make one by `{made}`."
        )
    return key


def read_public_key(path: Path) -> "Ed25519PublicKey":
    """Read a key of `--trusted-key`. ConfigError for a file that is no Ed25519 public key."""
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    made = "openssl pkey -in key.pem -pubout -out key.pub"
    try:
        key = load_pem_public_key(_read(path, made))
    except ValueError:
        key = None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigError(
            f"{path} is no Ed25519 public key in PEM. Take it out of the private one by `{made}`."
        )
    return key


def sign(directory: Path, key: "Ed25519PrivateKey") -> None:
    """Write the signature of an artifact beside its manifest."""
    signature = key.sign(_PURPOSE + (directory / MANIFEST).read_bytes())
    (directory / SIGNATURE).write_text(signature.hex() + "\n", encoding="ascii")
    sync(directory / SIGNATURE)


def check_signature(
    directory: Path, keys: "Sequence[Ed25519PublicKey]", name: Path | None = None
) -> None:
    """ArtifactError unless one of `keys` has signed the manifest of an artifact.

    `name` is what the message calls the artifact, by default `directory`.
    """
    from cryptography.exceptions import InvalidSignature

    name = directory if name is None else name
    try:
        manifest = (directory / MANIFEST).read_bytes()
        signature = bytes.fromhex((directory / SIGNATURE).read_text(encoding="ascii"))
    except FileNotFoundError:
        raise ArtifactError(f"{name} is not signed. Export it with --sign KEY.") from None
    except (OSError, ValueError):
        raise ArtifactError(f"{name}/{SIGNATURE} is damaged. Export again.") from None
    for key in keys:
        try:
            key.verify(signature, _PURPOSE + manifest)
        except InvalidSignature:
            continue
        return
    raise ArtifactError(
        f"{name} is not signed by a trusted key, or was changed since. Export it again with "
        "--sign KEY, and serve it with the public key of KEY."
    )


def _read(path: Path, made: str) -> bytes:
    try:
        return read_small(path, _MAX_KEY_BYTES)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. Make a key by `{made}`."
        ) from None


def check_resignable(directory: Path, key: "Ed25519PrivateKey | None") -> None:
    """ArtifactError if a new export to `directory` would lose a signature or sign foreign files.

    The files of an artifact that stay are signed with the new ones, so this key must have signed
    them before.
    """
    if key is not None and (directory / MANIFEST).exists():
        if not (directory / SIGNATURE).exists():
            raise ArtifactError(
                f"{directory} is not signed, and --sign would sign what it holds already. Export "
                "to a new --out."
            )
        check_signature(directory, [key.public_key()])
    if key is None and (directory / SIGNATURE).exists():
        raise ArtifactError(
            f"{directory} is signed. Give --sign KEY, or remove its {SIGNATURE} first."
        )
