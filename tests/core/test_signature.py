"""Signatures of artifacts, and what an artifact may not hold."""

import errno
import json
import os
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from pipeline.core.artifact import check_replaceable, new_artifact, read_manifest
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.manifest import MANIFEST, SIGNATURE
from pipeline.core.signature import (
    check_resignable,
    check_signature,
    read_private_key,
    read_public_key,
)
from pipeline.serve import trusted_copy
from pipeline.serve.trusted_copy import TrustedCopy

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))


def write(path: Path, key: Ed25519PrivateKey | None = KEY, content: bytes = b"weights") -> Path:
    with new_artifact(path, "repository", {}, key=key) as directory:
        (directory / "model").mkdir()
        (directory / "model" / "model.pt").write_bytes(content)
        (directory / "config.pbtxt").write_bytes(b"name")
    return path


def pem(path: Path, key: object, *, public: bool = False, password: bytes | None = None) -> Path:
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    encoded = (
        key.public_key().public_bytes(  # type: ignore[attr-defined]
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        if public
        else key.private_bytes(  # type: ignore[attr-defined]
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
    )
    path.write_bytes(encoded)
    return path


def test_a_signed_artifact_is_taken_by_any_trusted_key(tmp_path: Path) -> None:
    path = write(tmp_path / "repository")
    assert read_manifest(path, "repository") == {}
    check_signature(path, [OTHER.public_key(), KEY.public_key()])
    check_replaceable(path, "repository")  # the signature is a part of it
    with pytest.raises(ArtifactError, match="not signed by a trusted key"):
        check_signature(path, [OTHER.public_key()])


def test_one_flipped_byte_in_any_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "repository")
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        whole = file.read_bytes()
        for position in range(0, len(whole), 7):
            changed = bytearray(whole)
            changed[position] ^= 1
            file.write_bytes(changed)
            with (
                pytest.raises(ArtifactError) as caught,
                TrustedCopy(path, [KEY.public_key()]),
            ):
                pass
            assert "\n" not in str(caught.value)
            assert str(path) in str(caught.value)
        file.write_bytes(whole)
    with TrustedCopy(path, [KEY.public_key()]) as copy:
        assert (copy.path / "model" / "model.pt").read_bytes() == b"weights"
        assert copy.path.parent.stat().st_mode & 0o777 == 0o700
    assert not copy.path.exists()


def test_a_copy_has_the_files_of_the_manifest_alone_and_follows_no_link(tmp_path: Path) -> None:
    path = write(tmp_path / "repository")
    (path / "model" / "__pycache__").mkdir()
    (path / "model" / "__pycache__" / "model.pyc").write_bytes(b"code")
    (path / "evil").symlink_to(tmp_path)
    with TrustedCopy(path, [KEY.public_key()]) as copy:
        names = {p.relative_to(copy.path).as_posix() for p in copy.path.rglob("*") if p.is_file()}
    assert names == {MANIFEST, SIGNATURE, "config.pbtxt", "model/model.pt"}
    secret = tmp_path / "secret"
    secret.write_bytes(b"weights")  # the same bytes: the digest alone would not tell
    (path / "model" / "model.pt").unlink()
    for put in (lambda file: file.symlink_to(secret), lambda file: os.mkfifo(file)):
        put(path / "model" / "model.pt")
        with pytest.raises(ArtifactError), TrustedCopy(path, [KEY.public_key()]):
            pass
        (path / "model" / "model.pt").unlink()


def test_a_copy_follows_signed_exports_and_stays_where_one_is_not_signed(tmp_path: Path) -> None:
    path = write(tmp_path / "repository")
    with TrustedCopy(path, [KEY.public_key()]) as copy:
        assert not copy.refresh()
        write(path, content=b"newer")
        assert copy.refresh()
        assert (copy.path / "model" / "model.pt").read_bytes() == b"newer"
        write(path, key=OTHER, content=b"of another")
        lines: list[str] = []
        with copy.following(0.01, lines.append):
            for _ in range(2):
                with pytest.raises(ArtifactError, match="not signed by a trusted key"):
                    copy.refresh()
                time.sleep(0.2)
        assert len(lines) == 1  # for each change
        assert (copy.path / "model" / "model.pt").read_bytes() == b"newer"
        write(path, content=b"newest")
        assert copy.refresh()
        assert (copy.path / "model" / "model.pt").read_bytes() == b"newest"


def test_a_copy_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "repository")
    with TrustedCopy(path, [KEY.public_key()]) as copy:
        write(path, content=b"newer")

        def full(*_arguments: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(trusted_copy, "_copy_file", full)
            with pytest.raises(OSError, match="No space left"):
                copy.refresh()
        assert copy.refresh()
        assert (copy.path / "model" / "model.pt").read_bytes() == b"newer"


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
def test_a_link_or_a_pipe_in_place_of_the_manifest_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "repository")
    (path / name).rename(tmp_path / name)
    (path / name).symlink_to(tmp_path / name)
    with pytest.raises(ArtifactError), TrustedCopy(path, [KEY.public_key()]):
        pass
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(ArtifactError), TrustedCopy(path, [KEY.public_key()]):
        pass


def test_a_signature_is_neither_lost_nor_added_to_what_had_none(tmp_path: Path) -> None:
    signed, unsigned = write(tmp_path / "signed"), write(tmp_path / "unsigned", key=None)
    check_resignable(signed, KEY)
    check_resignable(unsigned, None)
    check_resignable(tmp_path / "new", KEY)
    for path, key, words in (
        (signed, None, "is signed. Give --sign"),
        (signed, OTHER, "not signed by a trusted key"),
        (unsigned, KEY, "is not signed, and --sign would sign"),
    ):
        with pytest.raises(ArtifactError, match=words):
            check_resignable(path, key)


def test_keys_are_pem_files_of_ed25519(tmp_path: Path) -> None:
    private = pem(tmp_path / "key.pem", KEY)
    public = pem(tmp_path / "key.pub", KEY, public=True)
    assert read_private_key(private).private_bytes_raw() == bytes([1]) * 32
    assert read_public_key(public) == KEY.public_key()
    rsa = generate_private_key(65537, 2048)
    others = {
        "an RSA key": pem(tmp_path / "rsa.pem", rsa),
        "with a password": pem(tmp_path / "locked.pem", KEY, password=b"word"),
        "public": public,
    }
    for file in others.values():
        with pytest.raises(ConfigError, match="no Ed25519 private key"):
            read_private_key(file)
    for file in (private, pem(tmp_path / "rsa.pub", rsa, public=True)):
        with pytest.raises(ConfigError, match="no Ed25519 public key"):
            read_public_key(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_public_key(tmp_path / "none.pub")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "model/../../x", "a\nb"])
def test_a_manifest_that_names_a_file_outside_is_damaged(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "repository", key=None)
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["sha256"]  # as an attacker would
    manifest["files"] = {name: {"bytes": 1, "sha256": "0"}}
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        read_manifest(path, "repository")


def test_a_manifest_without_files_and_one_with_a_changed_fact_are_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "repository", key=None)
    whole = (path / MANIFEST).read_text()
    for old, new in (('"facts": {}', '"facts": {"x": 1}'), ('"kind": "rep', '"kind": "ret')):
        assert old in whole
        (path / MANIFEST).write_text(whole.replace(old, new))
        with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
            read_manifest(path, "repository")
    manifest = json.loads(whole)
    del manifest["sha256"]
    (path / MANIFEST).write_text(json.dumps(manifest | {"files": {}}))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        read_manifest(path, "repository")


def test_links_in_an_artifact_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "repository", key=None)
    (path / "model").rename(tmp_path / "model")
    (path / "model").symlink_to(tmp_path / "model")
    with pytest.raises(ArtifactError, match="is a link, and links in artifacts are not followed"):
        read_manifest(path, "repository")
    (path / "model").unlink()
    (tmp_path / "model").rename(path / "model")
    assert read_manifest(path, "repository") == {}
    (path / "planted").symlink_to("/etc")
    with pytest.raises(ArtifactError, match="holds planted, which is no part of it"):
        check_replaceable(path, "repository")
    (tmp_path / "link").symlink_to(path)  # the artifact itself may be behind a link
    assert read_manifest(tmp_path / "link", "repository") == {}
