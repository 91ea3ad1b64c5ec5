"""Reference of the public Python names: pages of directives that mkdocstrings fills."""

from typing import NamedTuple

import pipeline
from pipeline import model

_OPTIONS = (
    "{show_root_heading: true, show_root_toc_entry: true, show_root_full_path: false, "
    "heading_level: 2}"
)
"""mkdocstrings prints the signature of a function below its own heading alone."""


class Package(NamedTuple):
    """Page of one importable package."""

    page: str
    title: str
    text: str
    names: dict[str, str]
    """Defining object of each public name."""


def packages() -> list[Package]:
    """The public packages."""
    blocks = {name: value for name, value in vars(model).items() if not name.startswith("_")}
    return [
        Package(
            "python-api.md",
            "Python",
            "The functions and objects of `from pipeline import ...`.",
            {n: _place(getattr(pipeline, n)) for n in pipeline.__all__ if n != "__version__"},
        ),
        Package(
            "building-blocks-api.md",
            "Building blocks in Python",
            "The names of `from pipeline import model as tr`. Shape letters: B sessions, L "
            "positions, D width, V rows of the item table, K list length, H heads, N negatives, "
            "T positions with a target.",
            {n: _place(v) for n, v in sorted(blocks.items()) if hasattr(v, "__qualname__")},
        ),
    ]


def api_page(package: Package) -> str:
    """Return the page in Markdown, a directive for each name."""
    lines = [f"# {package.title}\n", package.text]
    for place in package.names.values():
        lines += [f"\n::: {place}", f"    options: {_OPTIONS}"]
    return "\n".join(lines) + "\n"


def _place(value: object) -> str:
    return f"{value.__module__}.{value.__qualname__}"  # type: ignore[attr-defined]
