"""Check of a TorchScript program before it is loaded.

TorchScript can read and write files, also while it loads, so a program that was replaced could act.
The source text in the archive is read without running it, and every operator that it names must be
one that computes with tensors. Our Triton backend runs a copy of this module, which therefore
imports nothing of this project.
"""

import ast
import functools
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_OPERATORS_FILE = Path(__file__).with_name("program_operators.txt")
"""Operators and properties that programs may name beside the core operators of ATen, which compute
with tensors alone by their definition; a name a line."""
_BUILTINS = (
    *("int", "float", "bool", "len", "range", "min", "max"),
    *("annotate", "unchecked_cast", "uninitialized", "isinstance"),
)


_CODE = (".py", ".pkl", ".debug_pkl")
"""Endings of records that torch reads code or objects from."""
_MAX_CODE_BYTES = 64 << 20


class RefusedProgramError(Exception):
    """A program that is not loaded; the message says why."""


@contextmanager
def checked_program(path: Path) -> Iterator[str]:
    """Yield the path of a copy of a program in memory, so that what is loaded is what was checked.

    RefusedProgramError for an operator that no model needs, and for what is no such archive.
    """
    with os.fdopen(os.memfd_create("program"), "w+b") as copy:
        with _opened(path) as archive:
            code = _code(archive)
            refused = sorted(set(unknown_operators(code)))
            if refused:
                raise RefusedProgramError(
                    f"{path} holds a program with {refused[0]!r}, which no model needs. It was not "
                    "loaded. It may have been replaced; make it again."
                )
            _copy(archive, code, copy)
        # torch reads a file record by record, and a stream of Python whole, twice
        yield f"/proc/self/fd/{copy.fileno()}"


def _copy(archive: zipfile.ZipFile, code: dict[str, bytes], copy: IO[bytes]) -> None:
    """Write the records of an archive, those of `code` as they were checked."""
    with zipfile.ZipFile(copy, "w") as written:
        for name in archive.namelist():
            with written.open(name, "w", force_zip64=True) as record:
                if name in code:
                    record.write(code[name])
                    continue
                with archive.open(name) as weights:  # in parts: they take half the memory
                    shutil.copyfileobj(weights, record, 1 << 20)
    copy.flush()


def refused_operators(path: Path) -> list[str]:
    """Return what `checked_program` would refuse in a program; its weights are not read."""
    with _opened(path) as archive:
        return sorted(set(unknown_operators(_code(archive))))


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive as torch writes it: no name twice, and little that is compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            # readers of archives differ in which of two records they take
            if len({name.lower() for name in archive.namelist()}) < len(archive.namelist()):
                raise zipfile.BadZipFile
            # torch compresses code; weights that inflate could take more than any memory
            compressed = [r for r in archive.infolist() if r.compress_type != zipfile.ZIP_STORED]
            if sum(record.file_size for record in compressed) > _MAX_CODE_BYTES:
                raise zipfile.BadZipFile
            yield archive
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError):
        raise RefusedProgramError(f"{path} is not a program that this project wrote.") from None


def _code(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Content of the records with code, by name."""
    names = archive.namelist()
    return {name: archive.read(name) for name in names if name.lower().endswith(_CODE)}


def unknown_operators(records: dict[str, bytes]) -> Iterator[str]:
    """Yield the operators of a program that are not allowed, and text that is no program."""
    try:
        sources = [text.decode() for name, text in records.items() if name.lower().endswith(".py")]
        trees = [ast.parse(source) for source in sources]
    except (ValueError, SyntaxError, RecursionError):
        yield "text that is no TorchScript"
        return
    if any(b"torch.classes" in text for name, text in records.items() if name.endswith("pkl")):
        yield "classes"  # objects of C++, which are made while the records are read
    definitions = ast.FunctionDef | ast.ClassDef
    nodes = [node for tree in trees for node in ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, definitions)} - _operators()
    before_dots = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Name) and node.id in ("torch", "ops"):
            if id(node) not in before_dots:  # it would get another name
                yield node.id
        else:
            yield from _refused(node, own)


def _refused(node: ast.AST, own: set[str]) -> Iterator[str]:
    """Names of a node that are not allowed, besides those of its children.

    What follows a dot may be called, so each is no operator, or an allowed one, or a name of the
    program itself that no operator has.
    """
    match node:
        case ast.Attribute(value=ast.Name(id="ops")):
            if node.attr not in ("prim", "aten"):
                yield f"ops.{node.attr}"
        case (
            ast.Attribute(attr=name)
            | ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name))])
        ):
            # classes are of C++; a module with a number for a name is read by `getattr`
            if name == "classes" or name in _operators() - _allowed() - own:
                yield name
        case ast.Call(func=ast.Name(id=name)) if name not in _BUILTINS:
            yield name
        case ast.Import() | ast.ImportFrom() | ast.Lambda() | ast.With():
            yield type(node).__name__.lower()


@functools.cache
def _operators() -> frozenset[str]:
    """Names of all operators that TorchScript knows."""
    import torch  # not on import: core is light

    names = {schema.name.partition("::")[2] for schema in torch._C._jit_get_all_schemas()}
    return frozenset(names)


@functools.cache
def _allowed() -> frozenset[str]:
    import torch

    names = set(_OPERATORS_FILE.read_text(encoding="utf-8").split())
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        if namespace != "aten":
            continue
        operator = getattr(torch.ops.aten, name, None)
        overload = getattr(operator, schema.overload_name or "default", None)
        tags = getattr(overload, "tags", ())
        if torch.Tag.core in tags or torch.Tag.pointwise in tags:
            names.add(name)
    return frozenset(names)
