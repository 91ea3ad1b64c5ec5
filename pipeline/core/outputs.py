"""Checks of outputs that are not artifacts, such as report pages, before a stage is imported."""

from pathlib import Path

from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.manifest import MANIFEST

STUDY_FILE = "study.db"
"""Trials of `pipeline tune`."""
LOCK_FILE = ".lock"
SEED_RUN = "seed-"
"""Prefix of the names of runs that differ in the seed."""


def check_report(out: Path) -> Path:
    """Return the path of the numbers beside the page `out`.

    ConfigError if `out` does not end in .html or is inside an artifact, whose manifest lists all of
    its files; ArtifactError if it would overwrite a file of another program.
    """
    if out.suffix != ".html":
        raise ConfigError(f"--out is {out}, expected a name that ends in .html.")
    check_outside_artifacts(out)
    numbers = out.with_suffix(".json")
    for path in (out, numbers):
        if path.exists() and not (path.is_file() and _is_report(path)):
            raise ArtifactError(
                f"{path} holds something else; it is left alone. Choose another --out."
            )
    return numbers


def check_outside_artifacts(out: Path) -> None:
    """ConfigError if `out` is inside an artifact, whose manifest lists all of its files."""
    for folder in out.resolve().parents:
        if (folder / MANIFEST).is_file():
            raise ConfigError(
                f"{out} would be inside {folder.name}, whose manifest lists all of its files. "
                f"Choose an --out beside it, such as {folder.name}.html."
            )


def _is_report(path: Path) -> bool:
    with path.open("rb") as stream:
        begin = stream.read(400)
    return b'"written_by": "pipeline ' in begin or b'name="generator" content="pipeline ' in begin


def check_search(out: Path) -> None:
    """ArtifactError if `out` exists and `pipeline tune` did not write it."""
    is_study = (out / STUDY_FILE).exists()
    is_new = not out.exists() or (out.is_dir() and not {*out.iterdir()} - {out / LOCK_FILE})
    if not is_study and not is_new:
        raise ArtifactError(
            f"{out} is something that `pipeline tune` did not write; it is left alone. Choose "
            "another --out."
        )


def check_seeds(out: Path) -> None:
    """ArtifactError if `out` holds anything but runs of `train --seeds`."""
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    if (out.exists() and not out.is_dir()) or any(SEED_RUN not in name for name in names):
        raise ArtifactError(
            f"{out} holds something else than runs of several seeds; it is left alone. Choose "
            "another --out."
        )
