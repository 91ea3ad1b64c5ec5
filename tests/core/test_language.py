"""Words that the code base does without: each has a noun of the field in its place."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = sorted(
    file
    for folder in ("pipeline", "triton_models", "benchmarks", "tests")
    for file in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in file.parts
)
IDENTIFIERS = {"found", "told", "given", "known", "wanted", "whoever", "nobody", "somebody"}
"""Participles that say nothing of the value: `statistics`, `vocabulary`, `target_rows` do."""
PROSE = re.compile(r"\b(found|told|given|whoever|nobody|somebody|anyone's)\b", re.IGNORECASE)
FILE_NAMES = {"utils", "helpers", "base", "manager", "misc", "common"}


def identifiers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names that a module defines or assigns, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def docstrings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Docstrings of modules, classes, functions and attributes, with their lines."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else ():
            value = child.value if isinstance(child, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value, child.lineno


def banned(source: str) -> list[str]:
    """Banned words of a module: `LINE: WORD`."""
    tree = ast.parse(source)
    names = [
        f"{line}: {name}"
        for name, line in identifiers(tree)
        if name.strip("_") in IDENTIFIERS
        or (name.startswith("test_") and PROSE.search(name.replace("_", " ")))
    ]
    words = [
        f"{line}: {match[0]}" for text, line in docstrings(tree) for match in PROSE.finditer(text)
    ]
    return names + words


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_modules_use_nouns_of_the_field(file: Path) -> None:
    assert banned(file.read_text(encoding="utf-8")) == []


def test_files_are_named_for_their_noun() -> None:
    assert [file for file in FILES if file.stem in FILE_NAMES] == []


def test_scan_reports_identifiers_docstrings_and_test_names() -> None:
    source = (
        '"""What was told."""\nfound = 1\n\n\ndef test_nobody_answers(given): ...\n\n\n'
        'class Counts:\n    rows: int\n    """Rows given."""\n'
    )
    lines = ["2: found", "5: test_nobody_answers", "5: given", "1: told", "10: given"]
    assert sorted(banned(source)) == sorted(lines)
    assert banned('rows = 1\n"""Rows of the table."""\n') == []
