"""A comparison as files, in the format of their suffix."""

import json
from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import ConfigError
from pipeline.core.files import write_text
from pipeline.core.outputs import check_outside_artifacts
from pipeline.evaluation.comparison.page import page
from pipeline.evaluation.comparison.result import Comparison
from pipeline.evaluation.comparison.tables import latex, markdown

_FORMS: dict[str, Callable[[Comparison], str]] = {
    ".txt": lambda comparison: f"{comparison}\n",
    ".md": markdown,
    ".tex": latex,
    ".csv": lambda comparison: comparison.to_frame().to_csv(index=False),
    ".json": lambda comparison: json.dumps(comparison.to_dict(), allow_nan=False, indent=2) + "\n",
    ".html": page,
}


def check_file(file: Path, *, overwrite: bool = False) -> None:
    """ConfigError if the suffix of a file is unknown, or if the file exists."""
    if file.suffix not in _FORMS:
        raise ConfigError(f"--out {file}: expected a name that ends in {', '.join(_FORMS)}.")
    check_outside_artifacts(file)
    if file.exists() and not overwrite:
        raise ConfigError(f"{file} exists. Give --overwrite, or choose another --out.")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"--out {file}: {file.parent} is not a folder.")


def write(comparison: Comparison, file: Path) -> None:
    """Write the comparison in the format of the file's suffix."""
    write_text(file, _FORMS[file.suffix](comparison))
