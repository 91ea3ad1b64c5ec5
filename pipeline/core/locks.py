"""Hidden files and directories of writers: their names, locks and removal after a killed writer."""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_DIGITS = "[0-9a-f]{16}"


def sibling(path: Path, word: str = "partial") -> Path:
    """Return a hidden path beside `path`, unique to this writer."""
    return path.parent / f".{path.name}.{word}-{secrets.token_hex(8)}"


def remove_leftovers(path: Path, word: str = "partial") -> bool:
    """Remove hidden siblings of `path` that no process has locked, as their writer was killed.

    Returns whether no other writer is active.
    """
    return remove_abandoned(path.parent, rf"\.{re.escape(path.name)}\.{word}-{_DIGITS}")


def remove_abandoned(folder: Path, pattern: str) -> bool:
    """Remove entries of `folder` whose whole name matches and that no process has locked.

    Returns whether none is locked.
    """
    alone = True
    for old in folder.iterdir():
        if re.fullmatch(pattern, old.name):
            try:
                descriptor = lock(old)
            except BlockingIOError:
                alone = False
            except OSError:
                pass  # of another user, or renamed meanwhile
            else:
                if descriptor is not None:
                    _remove(old)
                    os.close(descriptor)
    return alone


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold the lock of `directory`, so that no writer begins while another removes leftovers.

    On a file system without locks there is none.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def lock(path: Path) -> int | None:
    """Lock a file or directory until the returned descriptor is closed or the process ends.

    Unlike a process id, the lock works between containers. None where the file system has no
    locks; BlockingIOError if another process holds it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor
