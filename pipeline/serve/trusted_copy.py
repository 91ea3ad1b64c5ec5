"""Private copy of a signed repository, which is what Triton reads.

Between a check of files and their use, a process that writes to the repository could exchange them.
So they are copied where only this user can write, and the copy is checked. It has the files of the
manifest alone, without what lies beside them, such as compiled Python.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pipeline.core.artifact import replace_directory
from pipeline.core.errors import ArtifactError
from pipeline.core.manifest import DAMAGED, MANIFEST, SIGNATURE, check_files, parse_manifest
from pipeline.core.signature import check_signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_NEXT_STEP = "Export it again with --sign KEY."


class TrustedCopy:
    """Copy of a repository while the `with` block runs. ArtifactError unless it is signed."""

    def __init__(self, repository: Path, keys: "Sequence[Ed25519PublicKey]") -> None:
        """`keys` are those that are trusted; the signature of one is enough."""
        self._source = repository
        self._keys = list(keys)
        self._taken = b""
        """Manifest of the copy, or of what was refused since."""
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._scratch = Path(tempfile.mkdtemp(prefix="pipeline-repository-"))  # mode 0700
        self.path = self._scratch / self._source.resolve().name
        """The copy."""
        try:
            self._taken = _manifest_bytes(self._source)
            self._copy(self.path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    @contextmanager
    def following(self, seconds: float, report: Callable[[str], object]) -> Iterator[None]:
        """Take up newer exports while the block runs; `report` gets a line for each refused one."""

        def follow() -> None:
            while not self._over.wait(seconds):
                with suppress(OSError):  # exchanged in this moment
                    try:
                        self.refresh()
                    except ArtifactError as error:
                        report(f"The repository was not taken up: {error}")

        thread = threading.Thread(target=follow, name="trusted copy", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def refresh(self) -> bool:
        """Copy the repository again if it has changed; return whether it has.

        ArtifactError, once for each change, where that is not signed: the copy stays as it was.
        """
        manifest = _manifest_bytes(self._source)
        if manifest == self._taken:
            return False
        self._taken = manifest
        newer = self._scratch / "newer"
        try:
            self._copy(newer)
            replace_directory(newer, self.path)
        finally:
            shutil.rmtree(newer, ignore_errors=True)
        return True

    def _copy(self, target: Path) -> None:
        target.mkdir()
        for name in (MANIFEST, SIGNATURE):
            with suppress(FileNotFoundError):
                _copy_file(self._source / name, target / name)
        check_signature(target, self._keys, self._source)
        try:
            manifest = parse_manifest(target)
        except DAMAGED:
            raise ArtifactError(f"{self._source}/{MANIFEST} is damaged. {_NEXT_STEP}") from None
        for name in manifest.files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                _copy_file(self._source / name, target / name)
            except OSError as error:
                raise ArtifactError(
                    f"{self._source}/{name} cannot be read: {error.strerror}. {_NEXT_STEP}"
                ) from None
        try:
            check_files(target, manifest, _NEXT_STEP)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(target), str(self._source))) from None


def _manifest_bytes(repository: Path) -> bytes:
    """Manifest and signature; ArtifactError for a link to elsewhere or a directory without one."""
    try:
        manifest = (repository / MANIFEST).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{repository}/{MANIFEST} cannot be read: {error.strerror}. {_NEXT_STEP}"
        ) from None
    with suppress(OSError):
        manifest += (repository / SIGNATURE).read_bytes()
    return manifest


def _copy_file(source: Path, target: Path) -> None:
    """Copy a regular file; OSError for a link, a pipe or a device."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream, target.open("xb") as written:
        shutil.copyfileobj(stream, written)
