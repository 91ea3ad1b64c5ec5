"""The directory of `pipeline update`: a state file beside the data, runs and repository."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.core.artifact import read_json
from pipeline.core.config import Config
from pipeline.core.errors import ArtifactError
from pipeline.core.files import write_text
from pipeline.core.manifest import WRITTEN_BY, digest_of
from pipeline.core.outputs import LOCK_FILE

STATE_FILE = "update.json"
REPOSITORY = "repository"
Step = Literal["preprocess", "train", "compare", "decide", "export", "remove"]
_DIGEST = "sha256"
"""Key of the digest of all other keys of the state file."""
_NUMBERED = re.compile(r"(?:data|run)-([0-9]+)|\.(?:data|run)-([0-9]+)\.[a-z]+(?:-[0-9a-f]{16})?")
"""Data and run of a generation, and partial copies of them that a killed writer left."""


class Generation(Config):
    """One update: new logs, the run that was trained on them, and its outcome."""

    number: int = Field(ge=1)
    """N of data-N and run-N."""
    fingerprint: str
    """Fingerprint of the recipe and the content of the logs."""
    logs: tuple[str, ...]
    before: int | None
    """Generation that was served when this one began, whose weights it starts from."""
    done: tuple[Step, ...] = ()
    comparison: dict[str, Any] | None = None
    """Previous and new run on the same targets, as `pipeline compare --json` prints it."""
    accepted: bool | None = None
    """Whether the run may be served, None before the decision."""
    reason: str = ""
    version: int | None = None
    """Version in the repository."""

    @property
    def data(self) -> str:
        """Name of the data directory."""
        return f"data-{self.number}"

    @property
    def run(self) -> str:
        """Name of the run."""
        return f"run-{self.number}"

    def changed(self, **values: Any) -> "Generation":
        """Return a copy with other values."""
        return self.model_copy(update=values)


class UpdateState(Config):
    """Content of the state file."""

    written_by: str = WRITTEN_BY
    name: str
    """Name of the model for clients."""
    generations: tuple[Generation, ...] = ()
    """Oldest first; those whose directories were removed are left out."""

    @property
    def last(self) -> Generation | None:
        """The newest generation."""
        return self.generations[-1] if self.generations else None

    def replaced(self, generation: Generation) -> "UpdateState":
        """Return the state with this generation instead of that of its number, or appended."""
        others = [each for each in self.generations if each.number != generation.number]
        return self.model_copy(update={"generations": (*others, generation)})

    def only(self, numbers: set[int]) -> "UpdateState":
        """Return the state with only the generations of these numbers."""
        kept = tuple(each for each in self.generations if each.number in numbers)
        return self.model_copy(update={"generations": kept})


def read_state(folder: Path, name: str) -> UpdateState:
    """Return the state of the directory, an empty one for a new directory.

    ArtifactError if the directory holds something else or the file is damaged; ConfigError if the
    file has a wrong key.
    """
    path = folder / STATE_FILE
    if path.exists():
        values = read_json(path)
        digest = values.pop(_DIGEST, None) if isinstance(values, dict) else None
        if digest is not None and digest != digest_of(values):  # an earlier version wrote none
            raise ArtifactError(
                f"{path} is damaged: it is not what was written. Put a copy of it back, or begin "
                "with another --from."
            )
        return UpdateState.from_dict(values, str(path))
    if any(entry.name != LOCK_FILE for entry in folder.iterdir()):
        raise ArtifactError(
            f"{folder} is something that `pipeline update` did not write; it is left alone. Choose "
            "another --from, a new directory for a first model."
        )
    return UpdateState(name=name)


def write_state(folder: Path, state: UpdateState) -> None:
    """Write the state file atomically."""
    values = json.loads(json.dumps(state.model_dump(mode="json"), allow_nan=False))
    values[_DIGEST] = digest_of(values)
    write_text(folder / STATE_FILE, json.dumps(values, indent=2) + "\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the directory if missing and lock it. ArtifactError if another update holds it.

    The lock ends with the process; a file system without locks has none. Partial state files of
    killed updates are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ArtifactError(
            f"Another `pipeline update` is running in {folder}. Wait until it ends."
        ) from None
    except OSError:
        pass  # a file system without locks
    try:
        for partial in folder.glob(f".{STATE_FILE}.*"):
            partial.unlink()
        yield
    finally:
        os.close(descriptor)


def remove_generations(folder: Path, kept: set[int]) -> None:
    """Remove data and runs of other generations, and partial ones of killed writers."""
    for path in folder.iterdir():
        match = _NUMBERED.fullmatch(path.name)
        if match and (path.name.startswith(".") or int(match[1]) not in kept):
            shutil.rmtree(path)
