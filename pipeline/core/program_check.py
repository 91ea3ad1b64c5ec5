"""Check of a TorchScript program before it is loaded.

TorchScript can read and write files, also while it loads, so a replaced program could do harm. The
source text in the archive is parsed without running it, and every operator that it names must be
one that computes with tensors. The loader of torch trusts the pickled records beside the text: a
wrong size reads and writes memory outside a tensor, so these records are parsed here first, without
creating their objects. Our Triton backend runs a copy of this module, which therefore imports
nothing of this project.
"""

import ast
import functools
import os
import pickletools
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

_OPERATORS_FILE = Path(__file__).with_name("program_operators.txt")
"""Operators and properties that programs may name beside the core operators of ATen, which compute
with tensors alone by their definition; a name a line."""
_BUILTINS = (
    *("int", "float", "bool", "len", "range", "min", "max"),
    *("annotate", "unchecked_cast", "uninitialized", "isinstance"),
)
_CODE = (".py", ".pkl")
"""Suffixes of records that torch reads code or objects from."""
_MAX_CODE_BYTES, _MAX_WORDS = 2 << 20, 300_000
"""Bounds of all records with code; four layers of Mamba over 200 positions have 0.4 MB."""
_RECORD = re.compile(
    r"[^/]+/(version|byteorder|\.data/(version|serialization_id)"
    r"|(data|constants)(\.pkl|/\d+)|code/__torch__(/\w+)*\.py)",
    re.ASCII,
)
"""Records of a program that an export writes; classes lie below the path of their module."""
_LEFT_OUT = re.compile(
    r"[^/]+/(code/__torch__(/\w+)*\.py\.debug_pkl|traced_inputs(\.pkl|/\d+))", re.ASCII
)
"""Records of `torch.jit.save` that no model needs: pickled positions in the source, which torch
trusts where it writes an error message, and inputs of a trace. They are never loaded."""
_MAX_DEPTH = 100
_TENSOR, _DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_CLASS = re.compile(r"__torch__(?!\.torch\.classes)(\.\w+)* \w+", re.ASCII)
_DEVICE = re.compile(r"cpu|cuda(:\d+)?", re.ASCII)
_NUMBERS = ("Byte", "Char", "Bool", "Short", "Half", "BFloat16", "Int", "Float", "Long", "Double")
_ITEM_BYTES = dict(
    zip((f"torch {kind}Storage" for kind in _NUMBERS), (1, 1, 1, 2, 2, 2, 4, 4, 8, 8), strict=True)
)
"""Bytes of a number by the kind of its storage."""
_NUM_PARTS = {
    **dict.fromkeys(("EMPTY_TUPLE", "EMPTY_DICT"), 0),
    **dict.fromkeys(("TUPLE1", "BINPERSID"), 1),
    **dict.fromkeys(("TUPLE2", "REDUCE", "NEWOBJ", "BUILD"), 2),
    "TUPLE3": 3,
}
"""Opcodes of pickle that combine a fixed number of values into one."""
_MARKED = {"TUPLE": 0, "SETITEMS": 1}
"""Opcodes that combine all values after a mark, and this number of values before it."""
_CHANGES = {"BUILD": "NEWOBJ", "SETITEMS": "EMPTY_DICT"}
"""Opcodes that change their first value, with the opcode that must have created it."""
_VALUES = {
    *("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("NONE", "NEWTRUE", "NEWFALSE"),
}


class RefusedProgramError(Exception):
    """A program that is not loaded; the message says why."""


@contextmanager
def checked_program(path: Path) -> Iterator[str]:
    """Yield the path of a copy of a program in memory, so that the checked bytes are loaded.

    RefusedProgramError for an operator that no model needs, and for a file of another format.
    """
    with os.fdopen(os.memfd_create("program"), "w+b") as copy:
        with _opened(path) as archive:
            code = _code(archive)
            for problem in _problems(archive, code):
                raise RefusedProgramError(
                    f"{path} holds a program with {problem}. It was not loaded. It may have been "
                    "replaced; make it again."
                )
            _copy(archive, code, copy)
        # a path, not a stream: torch reads a file record by record, and a stream whole, twice
        yield f"/proc/self/fd/{copy.fileno()}"


def _copy(archive: zipfile.ZipFile, code: dict[str, bytes], copy: IO[bytes]) -> None:
    """Write the records of an archive that torch loads, those of `code` as they were checked."""
    with zipfile.ZipFile(copy, "w") as written:
        for name in _loaded(archive):
            with written.open(name, "w", force_zip64=True) as record:
                if name in code:
                    record.write(code[name])
                    continue
                with archive.open(name) as weights:  # in chunks, which halves the memory
                    shutil.copyfileobj(weights, record, 1 << 20)
    copy.flush()


def _loaded(archive: zipfile.ZipFile) -> list[str]:
    """Names of the records that torch needs."""
    return [name for name in archive.namelist() if not _LEFT_OUT.fullmatch(name)]


def refused_part(path: Path) -> str | None:
    """Return the part of a program that `checked_program` refuses; weights are not read."""
    with _opened(path) as archive:
        return next(_problems(archive, _code(archive)), None)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive as torch writes it: unique names, and few compressed bytes."""
    try:
        if not path.is_file():  # opening a pipe waits for its writer
            raise zipfile.BadZipFile
        with zipfile.ZipFile(path) as archive:
            # readers of archives differ in which of two records they take
            if len({name.lower() for name in archive.namelist()}) < len(archive.namelist()):
                raise zipfile.BadZipFile
            # torch compresses code; weights that inflate could take more than any memory
            records = archive.infolist()
            loaded = map(archive.getinfo, _loaded(archive))
            compressed = [r for r in loaded if r.compress_type != zipfile.ZIP_STORED]
            if sum(record.file_size for record in compressed) > _MAX_CODE_BYTES:
                raise zipfile.BadZipFile
            # records must not share bytes of the file
            if sum(record.compress_size for record in records) > path.stat().st_size:
                raise zipfile.BadZipFile
            yield archive
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError):
        raise RefusedProgramError(f"{path} is not a program that this project wrote.") from None


def _code(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Content of the records with code, by name. RefusedProgramError where they are too large."""
    records = [archive.getinfo(n) for n in _loaded(archive) if n.lower().endswith(_CODE)]
    if sum(record.file_size for record in records) > _MAX_CODE_BYTES:
        raise RefusedProgramError(
            f"{archive.filename} has more than {_MAX_CODE_BYTES >> 20} MB of code. Use a smaller "
            "model, or one that does not have a part for each position."
        )
    return {record.filename: archive.read(record) for record in records}


def _problems(archive: zipfile.ZipFile, code: dict[str, bytes]) -> Iterator[str]:
    """Yield the parts of a program that no export writes, operators first."""
    try:
        trees = _trees(code)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        yield "text that is no TorchScript"
        return
    operators = sorted(set(unknown_operators(trees.values())))
    yield from (f"{name!r}, which no model needs" for name in operators)
    names = archive.namelist()
    if other := [name for name in _loaded(archive) if not _RECORD.fullmatch(name)]:
        yield f"the record {other[0]!r}, which no export writes"
    if len({name.split("/")[0] for name in names}) > 1:
        yield "records of two programs"
    classes = _classes(trees)
    sizes = {record.filename: record.file_size for record in archive.infolist()}
    for name in code:
        folder, _, ending = name.rpartition(".")
        if ending == "pkl" and (problem := _problem_of_objects(code[name], folder, classes, sizes)):
            yield problem


def _trees(records: dict[str, bytes]) -> dict[str, ast.Module]:
    """Return the syntax trees of the records with text. ValueError for too many words."""
    texts = {name: text for name, text in records.items() if name.lower().endswith(".py")}
    # a tree takes up to 300 times the memory of its text
    if sum(len(re.findall(rb"\w+", text)) for text in texts.values()) > _MAX_WORDS:
        raise ValueError
    return {name: ast.parse(text.decode()) for name, text in texts.items()}


def _classes(trees: dict[str, ast.Module]) -> dict[str, dict[str, str]]:
    """Return the attribute types of each class, by its name in pickled records."""
    classes = {}
    for name, tree in trees.items():
        module = name.partition("/code/")[2].removesuffix(".py").replace("/", ".")
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                classes[f"{module} {node.name}"] = dict(_attributes(node))
    return classes


def _attributes(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Attributes that a class declares, with their types."""
    for line in node.body:
        match line:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind):
                yield name, ast.unparse(kind)
            case ast.Assign(
                targets=[ast.Subscript(slice=ast.Constant(value=str(name)))], value=kind
            ):  # __annotations__["0"] = ...
                yield name, ast.unparse(kind)


def unknown_operators(trees: Iterable[ast.Module]) -> Iterator[str]:
    """Yield the operators of a program that are not allowed."""
    definitions = ast.FunctionDef | ast.ClassDef
    nodes = [node for tree in trees for node in ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, definitions)} - _operators()
    # such as __setstate__, which runs while the program is loaded
    methods = (node.name for node in nodes if isinstance(node, ast.FunctionDef))
    yield from (name for name in methods if name.startswith("__"))
    before_dots = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Name) and node.id in ("torch", "ops"):
            if id(node) not in before_dots:  # an alias would hide its operators
                yield node.id
        else:
            yield from _refused(node, own)


def _refused(node: ast.AST, own: set[str]) -> Iterator[str]:
    """Yield the names of a node, without its children, that are not allowed.

    An attribute may be called, so it must be an allowed operator or no operator, or a name that
    the program itself defines.
    """
    match node:
        case ast.Attribute(value=ast.Name(id="ops")):
            if node.attr not in ("prim", "aten"):
                yield f"ops.{node.attr}"
        case ast.Attribute(value=ast.Name(id="torch") | ast.Attribute(value=ast.Name(id="ops"))):
            if node.attr not in _allowed():
                yield node.attr
        case (
            ast.Attribute(attr=name)
            | ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name))])
        ):
            # `classes` has those of C++; `getattr` reads a module whose name is a number
            if name == "classes" or name in _operators() - _allowed() - own:
                yield name
        case ast.Call(func=ast.Name(id=name), args=[*arguments]):
            if name not in _BUILTINS or (name == "unchecked_cast" and _has_dot(arguments)):
                yield name
        case ast.Import() | ast.ImportFrom() | ast.Lambda() | ast.With():
            yield type(node).__name__.lower()


def _has_dot(arguments: list[ast.expr]) -> bool:
    """Whether the type of a cast is a class, whose attributes the object may lack."""
    return any(isinstance(node, ast.Attribute) for each in arguments[:1] for node in ast.walk(each))


@functools.cache
def _operators() -> frozenset[str]:
    """Names of all operators that TorchScript knows."""
    import torch  # late, as core must be imported without torch

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
        # operators with such names do not check arguments, and reach memory outside a tensor
        is_internal = "backward" in name or (name[0] == "_" and name[1] != "_")
        if (torch.Tag.core in tags or torch.Tag.pointwise in tags) and not is_internal:
            names.add(name)
    return frozenset(names)


class _Value(NamedTuple):
    """A value of a pickled record."""

    kind: str
    """Opcode that created it."""
    content: Any
    """Number, text or name of a class; the parts of any other value."""
    depth: int = 0
    is_shared: bool = False
    """Whether the memo holds it, after which it must not change."""


class _ObjectError(Exception):
    """A pickled object that is refused; the message names it."""


def _problem_of_objects(
    pickled: bytes, folder: str, classes: dict[str, dict[str, str]], sizes: dict[str, int]
) -> str | None:
    """Return the part of a pickled record that torch does not write, None if there is none.

    `folder` holds the storages of its tensors; `sizes` has the bytes of all records by name.
    """
    objects = _Objects(folder, classes, sizes)
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            objects.read(opcode.name, argument)
    except _ObjectError as error:
        return str(error)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return f"objects in {folder}.pkl that no export writes"
    return None


class _Objects:
    """Values of a pickled record, combined as by torch, without creating tensors or objects."""

    def __init__(
        self, folder: str, classes: dict[str, dict[str, str]], sizes: dict[str, int]
    ) -> None:
        self._folder = folder
        self._classes = classes
        self._sizes = sizes
        self._stack: list[_Value] = []
        self._marks: list[int] = []
        self._memo: list[_Value] = []

    def read(self, opcode: str, argument: Any) -> None:
        """Process one opcode. ValueError for one that torch does not write."""
        if opcode == "MARK":
            self._marks.append(len(self._stack))
        elif opcode.endswith("BINGET"):
            self._stack.append(self._memo[argument])
        elif opcode.endswith("BINPUT"):
            if argument != len(self._memo):  # torch allocates memory for all numbers up to it
                raise ValueError
            self._memo.append(self._stack.pop()._replace(is_shared=True))
            self._stack.append(self._memo[-1])
        elif opcode in _NUM_PARTS:
            self._join(opcode, len(self._stack) - _NUM_PARTS[opcode])
        elif opcode in _MARKED:
            self._join(opcode, self._marks.pop() - _MARKED[opcode])
        elif opcode not in ("PROTO", "STOP"):
            self._stack.append(_single(opcode, argument))

    def _join(self, opcode: str, begin: int) -> None:
        """Combine the values from `begin` on into one."""
        if begin < (self._marks[-1] if self._marks else 0):
            raise ValueError
        parts = self._stack[begin:]
        depth = 1 + max((part.depth for part in parts), default=0)
        if depth > _MAX_DEPTH:  # torch recurses into it, which could overflow its stack
            raise ValueError
        value = _Value(opcode, parts, depth)
        if opcode in _CHANGES:
            if parts[0].is_shared or parts[0].kind != _CHANGES[opcode]:
                raise ValueError
            value = parts[0]._replace(depth=depth)
            if opcode == "SETITEMS":
                value = value._replace(content=parts[1:])
            else:
                _check_attributes(self._classes[parts[0].content[0].content], parts[1])
        elif opcode == "BINPERSID":
            _check_storage(parts[0], self._folder, self._sizes)
        elif opcode in ("NEWOBJ", "REDUCE"):
            _check_class(opcode, *parts)
        self._stack[begin:] = [value]


def _single(opcode: str, argument: Any) -> _Value:
    """Return the value of an opcode that combines no others."""
    if opcode == "GLOBAL":
        if not (argument in (_TENSOR, _DICT, *_ITEM_BYTES) or _CLASS.fullmatch(argument)):
            raise _ObjectError(f"an object of {argument!r}, which no model needs")
    elif opcode not in _VALUES:
        raise ValueError
    return _Value(opcode, argument)


def _check_class(opcode: str, name: _Value, arguments: _Value) -> None:
    """ValueError unless a class is called as torch writes it."""
    if opcode == "NEWOBJ":
        is_right = _CLASS.fullmatch(name.content) and not arguments.content
    elif name.content == _TENSOR:
        is_right = arguments.content[0].kind == "BINPERSID"
    else:
        is_right = name.content == _DICT and not arguments.content
    if name.kind != "GLOBAL" or not is_right:
        raise ValueError


def _check_attributes(declared: dict[str, str], state: _Value) -> None:
    """ValueError for attributes of other classes than declared: torch finds them by position."""
    if state.kind != "EMPTY_DICT":
        raise ValueError
    for key, value in zip(state.content[::2], state.content[1::2], strict=True):
        if value.kind not in (*_VALUES, "REDUCE", "NEWOBJ"):
            raise ValueError
        name = value.content[0].content.replace(" ", ".") if value.kind == "NEWOBJ" else None
        kind = declared[key.content]
        if name != (kind if kind.startswith("__torch__") else None):
            raise ValueError


def _check_storage(value: _Value, folder: str, sizes: dict[str, int]) -> None:
    """_ObjectError for a storage that is not as large as its record."""
    _, kind, key, device, number = value.content
    size = sizes[f"{folder}/{key.content}"]
    if kind.kind != "GLOBAL" or not _DEVICE.fullmatch(device.content):
        raise ValueError
    if number.content * _ITEM_BYTES[kind.content] != size:
        raise _ObjectError(
            f"a tensor of {number.content:,} numbers in {folder}/{key.content}, which has "
            f"{size:,} bytes"
        )
