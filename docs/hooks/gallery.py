"""Gallery of the examples: each program as a page and as a notebook.

The programs have cells as in Jupyter's percent format: `# %%` begins code, `# %% [markdown]` text.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path(__file__).parents[2] / "examples"
_CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


class Cell(NamedTuple):
    """Part of a program."""

    is_text: bool
    content: str


def programs() -> list[Path]:
    """Examples that have cells, by name."""
    return [p for p in sorted(EXAMPLES.glob("*.py")) if _CELL.search(p.read_text("utf-8"))]


def cells(program: Path) -> list[Cell]:
    """Cells of a program, in their order."""
    _, *parts = _CELL.split(program.read_text(encoding="utf-8"))
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [
        Cell(True, re.sub(r"^# ?", "", content, flags=re.MULTILINE).strip())
        if kind
        else Cell(False, content.strip())
        for kind, content in pairs
    ]


def example_page(program: Path) -> str:
    """Return the program as a page in Markdown."""
    title, *rest = cells(program)
    name = program.stem
    links = f"[Notebook]({name}.ipynb), or `examples/{program.name}`, which the tests run whole."
    blocks = [c.content if c.is_text else f"```python\n{c.content}\n```" for c in rest]
    return "\n\n".join([title.content, links, *blocks]) + "\n"


def notebook(program: Path) -> str:
    """Return the program as a Jupyter notebook without outputs."""
    entries = []
    for number, cell in enumerate(cells(program)):
        source = cell.content.splitlines(keepends=True)
        entry = {"cell_type": "markdown", "id": f"cell-{number}", "metadata": {}, "source": source}
        if not cell.is_text:
            entry |= {"cell_type": "code", "execution_count": None, "outputs": []}
        entries.append(entry)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps(
        {"cells": entries, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1
    )
