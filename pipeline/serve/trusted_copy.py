"""Private copy of a signed repository, from which Triton reads.

Between the check of a file and its use, a process that writes to the repository could replace it.
The files are therefore copied to a directory of this user alone, and the copy is checked. It has
only the files of the manifest, without others such as bytecode.
"""

import errno
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from pipeline.core.artifact import replace_directory
from pipeline.core.errors import ArtifactError
from pipeline.core.manifest import DAMAGED, MANIFEST, SIGNATURE, check_files, parse_manifest
from pipeline.core.signature import check_signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_NEXT_STEP = "Export it again with --sign KEY."
_MAX_MANIFEST_BYTES = 16 << 20


class TrustedCopy:
    """Copy of a repository while the `with` block runs. ArtifactError unless it is signed."""

    def __init__(self, repository: Path, keys: "Sequence[Ed25519PublicKey]") -> None:
        """`keys` are the trusted keys; a signature by one of them suffices."""
        self._source = repository
        self._keys = list(keys)
        self._copied_manifest = b""
        """Manifest and signature of the copy."""
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._scratch = Path(tempfile.mkdtemp(prefix="pipeline-repository-"))  # mode 0700
        self.path = self._scratch / self._source.resolve().name
        """The copy."""
        try:
            self._copied_manifest = self._copy_whole(self.path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    @contextmanager
    def following(self, seconds: float, report: Callable[[str], object]) -> Iterator[None]:
        """Copy newer exports while the block runs; `report` gets a line for each that fails."""

        def follow() -> None:
            reported = ""
            while not self._over.wait(seconds):
                line = ""
                try:
                    self.refresh()
                except (ArtifactError, OSError) as error:
                    line = f"The newer repository is not served: {error}"
                if line and line != reported:
                    report(line)
                reported = line

        thread = threading.Thread(target=follow, name="trusted copy", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def refresh(self) -> bool:
        """Copy the repository again if it has changed; return whether it has.

        ArtifactError for an unsigned change, OSError if it cannot be copied: the copy is left
        unchanged, and the next call tries again.
        """
        if _manifest_bytes(self._source) == self._copied_manifest:
            return False
        newer = self._scratch / "newer"
        try:
            manifest = self._copy_whole(newer)
            replace_directory(newer, self.path)
        finally:
            shutil.rmtree(newer, ignore_errors=True)
        self._copied_manifest = manifest
        return True

    def _copy_whole(self, target: Path) -> bytes:
        """Copy, again if an export came in between; return manifest and signature.

        ArtifactError if the repository is not whole or not signed.
        """
        manifest = _manifest_bytes(self._source)
        try:
            self._copy(target)
        except ArtifactError:
            if _manifest_bytes(self._source) == manifest:
                raise
            shutil.rmtree(target)
            return self._copy_whole(target)
        return manifest

    def _copy(self, target: Path) -> None:
        target.mkdir()
        for name in (MANIFEST, SIGNATURE):
            with suppress(FileNotFoundError):
                (target / name).write_bytes(_read(self._source / name, _MAX_MANIFEST_BYTES))
        check_signature(target, self._keys, self._source)
        try:
            manifest = parse_manifest(target)
        except DAMAGED:
            raise ArtifactError(f"{self._source}/{MANIFEST} is damaged. {_NEXT_STEP}") from None
        for name, (num_bytes, _) in manifest.files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                _copy_file(self._source / name, target / name, num_bytes)
            except FileNotFoundError:
                raise ArtifactError(
                    f"{self._source} is incomplete: missing {name}. {_NEXT_STEP}"
                ) from None
        try:
            check_files(target, manifest, _NEXT_STEP)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(target), str(self._source))) from None


def _manifest_bytes(repository: Path) -> bytes:
    """Return manifest and signature. ArtifactError if the manifest cannot be read."""
    try:
        manifest = _read(repository / MANIFEST, _MAX_MANIFEST_BYTES)
    except OSError as error:
        raise ArtifactError(
            f"{repository}/{MANIFEST} cannot be read: {error.strerror}. {_NEXT_STEP}"
        ) from None
    with suppress(OSError):
        manifest += _read(repository / SIGNATURE, _MAX_MANIFEST_BYTES)
    return manifest


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file. ArtifactError for a link, and for a pipe or device, which may block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ArtifactError(f"{path} is a link, which is not followed. {_NEXT_STEP}") from None
        raise
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ArtifactError(f"{path} is no file. {_NEXT_STEP}")
        yield stream


def _read(path: Path, most: int) -> bytes:
    """Return the content of a small file. ArtifactError for a larger one."""
    with _opened(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ArtifactError(f"{path} has more than {most:,} bytes. {_NEXT_STEP}")
    return content


def _copy_file(source: Path, target: Path, num_bytes: int) -> None:
    """Copy a file up to one byte beyond its size, with which `check_files` refuses a longer one."""
    left = num_bytes + 1
    with _opened(source) as stream, target.open("xb") as written:
        while left > 0 and (part := stream.read(min(left, 1 << 20))):
            written.write(part)
            left -= len(part)
