"""Check of the Python in a model repository, which Triton runs.

An export copies it from the project. A repository that was changed, or that another version wrote,
differs, and is not served unless a trusted key has signed it.
"""

from pathlib import Path

from pipeline.core.errors import ArtifactError
from pipeline.core.files import find_resource

_ADAPTER = "model.py"
_RUNTIME = "request_runtime"


def check_code(repository: Path) -> None:
    """ArtifactError for Python in a repository that is not the project's own."""
    for file in sorted(repository.rglob("*")):
        if file.is_symlink():
            raise ArtifactError(f"{file} is a link, which an export does not write. Remove it.")
        if "__pycache__" in file.parts or (file.suffix == ".pyc"):
            raise ArtifactError(
                f"{file} is compiled Python, which an export does not write. Remove it."
            )
        if file.suffix == ".py" and file.read_bytes() != _own(file):
            raise ArtifactError(
                f"{file} is not the Python of this version: another one exported it, or it was "
                "changed. Export the run again, or serve it as it is with --any-code."
            )


def _own(file: Path) -> bytes | None:
    """Content of the project's copy of a file in `MODEL/VERSION/`; None if it has none."""
    parts = file.parts
    if _RUNTIME in parts:
        name = Path(*parts[len(parts) - parts[::-1].index(_RUNTIME) :])
        own = Path(__file__).parent / "runtime" / name
    elif file.name == _ADAPTER:
        own = find_resource(f"triton_models/requests/1/{_ADAPTER}")
    else:
        return None
    return own.read_bytes() if own.is_file() else None
