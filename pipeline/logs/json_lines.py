"""JSON lines as tables: one object per line, nested objects and lists of objects as columns.

Arrow parses a block of lines as it is. Only where it cannot, because a line is damaged or a field
holds values of several types, the lines are examined one by one.
"""

import json
import re
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from pipeline.core.errors import DataError
from pipeline.logs.row_counts import NO_OBJECT, RowCounts
from pipeline.logs.text import TextFile, decode, has_lines, has_long_line, map_ahead

_EXACT = 2.0**53
"""Integers from this size on may lose digits as float64."""
_AROUND_OBJECTS = b" \t,\x1e"
"""Characters stripped around an object: blanks, array commas and the separator of RFC 7464."""
_DEEPEST = 500
"""Maximum nesting depth of a line: Arrow's parser aborts the process at 100,000."""
_MOST_FIELDS, _MOST_CELLS = 10_000, 30_000_000
"""Maximum field names of a block, nested ones included, and maximum of fields times objects:
Arrow's tables hold every field for every object, about 13 bytes each."""
_PART_CELLS = 10_000_000
_NAME = re.compile(rb'"([^"\n]*+)"\s*+:')
_NUM_SAMPLES, _SAMPLE_BYTES = 1_000, 256
_FEW_RARE, _FEW_NAMES = 4, 100
"""A block has few fields if its sample has fewer names that occur once, and fewer names."""
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError)


class JsonLines:
    """File of JSON lines, readable once."""

    def __init__(self, file: Path, row_counts: RowCounts, fields: "Fields") -> None:
        self._file = file
        self._fields = fields
        self._text = TextFile(file, row_counts)
        self._row_counts = row_counts

    def tables(self) -> Generator[pa.Table, None, None]:
        """Yield one table per block with objects as rows; types are those of the block.

        OSError if the file cannot be read, DataError if it holds one array.
        """
        with ThreadPoolExecutor(1) as pool:
            for block, table in map_ahead(pool, _parse_intact, self._blocks()):
                yield self._repair(block) if table is None else table
        self._text.count_lost()

    def _blocks(self) -> Iterator[bytes]:
        is_first = True
        for block in self._text.blocks():
            if not block.strip():
                continue
            if is_first and block.lstrip().startswith(b"["):
                raise DataError(
                    f"{self._file} holds one JSON array. Expected an object a line, as "
                    "`jq -c '.[]'` writes them."
                )
            is_first = False
            yield from self._parts(block)

    def _parts(self, block: bytes) -> Iterator[bytes]:
        """Split a block whose objects differ in their fields. DataError for too many fields."""
        num_fields, num_objects = _num_fields(block), max(1, block.count(b"{"))
        if num_fields > _MOST_FIELDS or num_fields * num_objects > _MOST_CELLS:
            raise DataError(
                f"{self._file} has {num_fields:,} different fields in {num_objects:,} objects "
                "nearby, more than are read. Write fields whose names are data as a list of texts."
            )
        if num_fields * num_objects <= _PART_CELLS:
            yield block
            return
        lines = block.splitlines(keepends=True)
        step = max(1, len(lines) * _PART_CELLS // (num_fields * num_objects))
        for at in range(0, len(lines), step):
            yield b"".join(lines[at : at + step])

    def _repair(self, block: bytes) -> pa.Table:
        """Objects of all readable lines; scalars become text if types differ within a field."""
        lines, records = [], []
        for line in filter(bytes.strip, block.splitlines()):
            line = line.strip(_AROUND_OBJECTS)
            try:
                if _is_deep(line) and _is_deep(_TEXT.sub(b"", line)):
                    raise RecursionError
                records.append(_scalars_as_text(line))
                lines.append(line)
            except (ValueError, RecursionError):
                self._row_counts.rows += 1
                self._row_counts.dropped[NO_OBJECT] += 1
                self._row_counts.add_example(NO_OBJECT, decode(line)[0])
        if not lines:
            return pa.table({})
        table = _parse_intact(b"\n".join(lines))
        if table is not None:
            return table
        try:
            return _parse(_as_lines(records))
        except _UNREADABLE:
            self._fields.make_alike(records, self._row_counts)
            return _parse(_as_lines(records))


@dataclass(frozen=True)
class Fields:
    """Fields that a recipe reads, by dotted name."""

    columns: frozenset[str]
    """Names of the fields."""
    lists: frozenset[str]
    """Fields, and parents of fields, in which a single value means a list of one value."""

    def make_alike(
        self, records: list[dict[str, Any]], row_counts: RowCounts, prefix: str = ""
    ) -> None:
        """Unify fields that hold objects or lists in some records only, in place.

        A field that is not read is removed. In a field with lists, a single value becomes a list of
        one; otherwise values become JSON text, or missing where a field of an object is read.
        Changed values are counted.
        """
        for name in {key for record in records for key in record}:
            path = prefix + name
            if not any(f"{used}.".startswith(f"{path}.") for used in self.columns | self.lists):
                for record in records:
                    record.pop(name, None)
                continue
            fields = [(each, name) for each in records if each.get(name) is not None]
            self._unite(path, fields, row_counts, is_field=True)
            lists = [each[name] for each, _ in fields if isinstance(each[name], list)]
            elements = [(each, at) for each in lists for at in range(len(each))]
            self._unite(path, elements, row_counts, is_field=False)
            objects = [holder[key] for holder, key in (*fields, *elements)]
            if inner := [each for each in objects if isinstance(each, dict)]:
                self.make_alike(inner, row_counts, f"{path}.")

    def _unite(
        self, path: str, places: list[tuple[Any, Any]], row_counts: RowCounts, *, is_field: bool
    ) -> None:
        """Unify the values at `places`, pairs of a container and a key, if their kinds differ."""
        kinds = {_kind_of(holder[key]) for holder, key in places} - {"null"}
        if len(kinds) < 2:
            return
        if is_field and path in self.lists and "list" in kinds:
            for holder, key in places:
                if not isinstance(holder[key], list):
                    holder[key] = [holder[key]]
            return
        as_text = path in self.columns
        action = "read as text" if as_text else "set to missing"
        reason = f"values of {path} that are of another type than in other lines, {action}"
        for holder, key in places:
            kind, text = _kind_of(holder[key]), json.dumps(holder[key], ensure_ascii=False)
            if kind in ("list", "object") if as_text else kind in ("list", "scalar"):
                row_counts.repaired[reason] += 1
                row_counts.add_example(reason, text)
                holder[key] = text if as_text else None


def _num_fields(block: bytes) -> int:
    """Upper bound of the field names of a block; 0 if they are few.

    Reading all names takes as long as parsing the block, so a random sample is read first: if all
    objects have the same fields, no name occurs only once in it. Quoted text counts as a name.
    """
    random = np.random.default_rng()
    starts = random.integers(0, len(block), _NUM_SAMPLES).tolist()
    names = Counter(
        _NAME.findall(b"\n#".join(block[at : at + _SAMPLE_BYTES] for at in starts))
        if len(block) > _NUM_SAMPLES * _SAMPLE_BYTES
        else _NAME.findall(block)
    )
    if sum(number == 1 for number in names.values()) < _FEW_RARE and len(names) < _FEW_NAMES:
        return 0
    return len({*_NAME.findall(block)})


def _kind_of(value: Any) -> Literal["null", "scalar", "list", "object"]:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "object"
    return "list" if isinstance(value, list) else "scalar"


def _as_lines(records: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode()


def flatten(table: pa.Table, explode: str | None, row_counts: RowCounts) -> pa.Table:
    """Fields of objects as columns `object.field`, and one row per element of `explode`.

    A table without the column `explode` is returned flat.
    """
    table = _flat(table)
    if explode is None or explode not in table.column_names:
        return table
    lists = table[explode]
    if not (pa.types.is_null(lists.type) or _is_list(lists.type)):
        raise DataError(
            f"`explode: {explode}` names a column of {lists.type}. Expected a list of objects."
        )
    if pa.types.is_null(lists.type):
        lists = lists.cast(pa.list_(pa.null()))
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    if empty := int((lengths == 0).sum()):
        row_counts.warnings["rows of lists without an item"] += empty
    rows = pa.array(np.repeat(np.arange(table.num_rows), lengths))
    columns = {name: table[name].take(rows) for name in table.column_names if name != explode}
    return _flat(pa.table(columns | {explode: pc.list_flatten(lists)}))


def object_lists(schema: pa.Schema) -> list[str]:
    """Names of the columns that hold lists of objects."""
    fields = _flat(schema.empty_table()).schema
    return [f.name for f in fields if _is_list(f.type) and pa.types.is_struct(f.type.value_type)]


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _flat(table: pa.Table) -> pa.Table:
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table


def _parse_intact(block: bytes) -> pa.Table | None:
    """Objects as rows; None if the lines must be examined."""
    if _is_deep(block):
        return None
    try:
        table = _parse(block)
    except _UNREADABLE:
        return None
    if not has_lines(block, table.num_rows) or any(map(_loses_digits, table.columns)):
        return None
    return table


def _is_deep(block: bytes) -> bool:
    """Whether a line exceeds the maximum nesting depth; brackets inside text count too."""
    if not has_long_line(block, 2 * _DEEPEST):
        return False
    codes = np.frombuffer(block, np.uint8)
    steps = np.isin(codes, list(b"[{")).astype(np.int8) - np.isin(codes, list(b"]}"))
    depths = np.cumsum(steps, dtype=np.int32)
    starts = np.append(0, np.flatnonzero(codes[:-1] == ord("\n")) + 1)
    before = np.append(0, depths[starts[1:] - 1])
    return bool((np.maximum.reduceat(depths, starts) - before).max() > _DEEPEST)


def _parse(block: bytes) -> pa.Table:
    """Objects as rows. Text stays text where Arrow would read times."""
    table = _read_json(block, None)
    times = [(field.name, _without_times(field.type)) for field in table.schema]
    if fields := [(name, kind) for name, kind in times if kind is not None]:
        table = _read_json(block, pa.schema(fields))
    return table


def _read_json(block: bytes, schema: pa.Schema | None) -> pa.Table:
    return pa.json.read_json(
        pa.BufferReader(block),
        read_options=pa.json.ReadOptions(block_size=len(block) + 1, use_threads=False),
        parse_options=pa.json.ParseOptions(explicit_schema=schema),
    )


def _without_times(kind: pa.DataType) -> pa.DataType | None:
    """Fields of a type that hold times, as text; None without times."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        element = _without_times(kind.value_type)
        return None if element is None else pa.list_(element)
    if pa.types.is_struct(kind):
        kinds = [(kind.field(i).name, _without_times(kind.field(i).type)) for i in range(len(kind))]
        fields = [(name, each) for name, each in kinds if each is not None]
        return pa.struct(fields) if fields else None
    return None


def _loses_digits(column: Any) -> bool:
    """Whether floats in a column, nested ones included, may be integers that lost digits."""
    kind = column.type
    if pa.types.is_list(kind):
        return _loses_digits(pc.list_flatten(column))
    if pa.types.is_struct(kind):
        fields = range(kind.num_fields)
        return any(_loses_digits(pc.struct_field(column, [field])) for field in fields)
    if not pa.types.is_floating(kind):
        return False
    return bool(pc.any(pc.greater_equal(pc.abs(column), _EXACT)).as_py())


def _scalars_as_text(line: bytes) -> dict[str, Any]:
    """Object of a line, with numbers and booleans as text. ValueError unless it is an object."""
    record = json.loads(
        decode(line)[0], strict=False, parse_int=str, parse_float=str, parse_constant=str
    )
    if not isinstance(record, dict):
        raise ValueError("no object")
    json.dumps(record, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    whole: dict[str, Any] = _booleans_as_text(record)
    return whole


def _booleans_as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _booleans_as_text(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_booleans_as_text(each) for each in value]
    return str(value).lower() if isinstance(value, bool) else value
