"""Cases that both checkouts run."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Case:
    """One recipe with its logs, and the parts after preprocessing."""

    name: str
    """Name, also of the folder of its output."""
    recipe: str
    """YAML file; a relative path is one of the checkout, such as configs/rsc15.yaml."""
    logs: tuple[str, ...]
    tests: tuple[str, ...] = ()
    base: str | None = None
    """Name of the case whose data this one continues."""
    operators: str | None = None
    """Python file with NVTabular operators."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Values that replace those of the recipe, by dotted key."""
    parts: tuple[str, ...] = ()
    """train, and serve, which includes train."""
    requests: str | None = None
    """File of the requests for the served model."""
    may_fail: bool = False
    """Whether both checkouts may refuse it, as for some random recipes."""

    def job(self) -> dict[str, Any]:
        """Return the case as JSON for the worker."""
        return asdict(self)


def write_recipe(path: Path, values: dict[str, Any]) -> str:
    """Write a recipe in the current format and return its path."""
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return str(path)
