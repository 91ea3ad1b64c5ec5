"""Random logs of interactions, in all formats that preprocessing reads, clean and dirty."""

import csv
import gzip
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, str]
"""Text by column, as in a CSV file; "" is missing."""
Of = Literal["item", "interaction", "session"]
TIME_STYLES = ("s", "s.ms", "ms", "us", "ns", "iso", "iso utc", "iso z", "iso zone")
_START = datetime(2024, 2, 26, tzinfo=UTC)
_JUNK_NUMBERS = ("NaN", "inf", "-Infinity", "1e400", "cheap", "1,5", "--", "0x10")
_JUNK_TIMES = ("", "soon", "nan", "inf", "1e300", "2024-13-45", "99999999999999999999")


@dataclass(frozen=True)
class Column:
    """A further column of a log."""

    name: str
    of: Of
    draw: Callable[[random.Random], str]
    is_number: bool = False
    separator: str | None = None
    """Separator of the values of a column of tags."""


@dataclass(frozen=True)
class Shape:
    """Columns and size of a random log."""

    session: str
    item: str
    time: str | None
    """None for a log whose rows are in the order of time."""
    time_style: str
    session_style: str
    item_style: str
    num_sessions: int
    num_items: int
    days: int
    columns: tuple[Column, ...] = ()


@dataclass
class Log:
    """Rows of a log with the names of its columns."""

    names: list[str]
    rows: list[Row]
    separators: dict[str, str] = field(default_factory=dict)
    """Separators of columns of tags, which Parquet may hold as lists."""


def id_text(style: str, number: int) -> str:
    """Return the id of a session, an item or a category."""
    texts = {
        "int": str(number),
        "large": str(7_000_000_000_000_000_000 + number),
        "negative": str(3 - number),
        "padded": f"{number:04d}",
        "text": f"sku-{number:05d}",
        "unicode": f"Größe {number} ✓",
        "comma": f'a, "{number}"',
        "mixed": f"x{number}" if number % 3 == 0 else str(number),
    }
    return texts[style]


def time_text(style: str, moment: datetime) -> str:
    """Return a time in the form of the log."""
    microseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    if style == "s.ms":
        return f"{microseconds / 10**6:.3f}"
    factors = {"s": 10**6, "ms": 1000, "us": 1}
    if style in factors:
        return str(microseconds // factors[style])
    if style == "ns":
        return str(microseconds * 1000)
    suffix = {"iso": "", "iso utc": " UTC", "iso z": "Z", "iso zone": "+02:00"}[style]
    return (
        moment.strftime("%Y-%m-%dT%H:%M:%S" if style == "iso z" else "%Y-%m-%d %H:%M:%S") + suffix
    )


def random_log(chance: random.Random, shape: Shape) -> Log:
    """Return interactions of all sessions, ordered by session, by time, or not at all."""
    values_of_items: list[Row] = [
        {c.name: c.draw(chance) for c in shape.columns if c.of == "item"}
        for _ in range(shape.num_items)
    ]
    timed: list[tuple[datetime, Row]] = []
    for number in range(shape.num_sessions):
        timed += _session(chance, shape, number, values_of_items)
    order = chance.choice(["session", "time", "none"])
    if shape.time is not None and order == "time":
        timed.sort(key=lambda pair: pair[0])
    elif shape.time is not None and order == "none":
        chance.shuffle(timed)
    names = [shape.session, shape.item, *([shape.time] if shape.time else [])]
    names += [c.name for c in shape.columns]
    separators = {c.name: c.separator for c in shape.columns if c.separator is not None}
    chance.shuffle(names)
    return Log(names, [row for _, row in timed], separators)


def _session(
    chance: random.Random, shape: Shape, number: int, values_of_items: list[Row]
) -> list[tuple[datetime, Row]]:
    moment = _START + timedelta(seconds=chance.randrange(shape.days * 86_400))
    own = {c.name: c.draw(chance) for c in shape.columns if c.of == "session"}
    length = 1 + min(int(chance.expovariate(0.25)), 60)
    interactions = []
    for _ in range(length):
        moment += timedelta(seconds=int(chance.choice([0, 20, 90, 400, 4000]) * chance.random()))
        item = int(shape.num_items * chance.random() ** 2)
        row = {
            shape.session: id_text(shape.session_style, number),
            shape.item: id_text(shape.item_style, item),
            **own,
            **values_of_items[item],
            **{c.name: c.draw(chance) for c in shape.columns if c.of == "interaction"},
        }
        if shape.time is not None:
            row[shape.time] = time_text(shape.time_style, moment)
        interactions.append((moment, row))
        if chance.random() < 0.03:  # the same event twice
            interactions.append((moment, dict(row)))
    return interactions


def damage_rows(chance: random.Random, log: Log, shape: Shape) -> None:
    """Replace some values by missing ones, invalid numbers and times, or ids of another kind."""
    numbers = [c.name for c in shape.columns if c.is_number]
    for row in log.rows:
        if chance.random() < 0.01:
            row[shape.session] = ""
        if chance.random() < 0.02:
            row[shape.item] = chance.choice(["", "007", "3.0", "-0", "1e16", "sku x"])
        if shape.time is not None and chance.random() < 0.01:
            row[shape.time] = chance.choice(_JUNK_TIMES)
        if numbers and chance.random() < 0.03:
            row[chance.choice(numbers)] = chance.choice(_JUNK_NUMBERS)


# --- text ----------------------------------------------------------------------------------------


def write_text(
    path: Path, log: Log, delimiter: str, *, header: bool, dirty: random.Random | None
) -> None:
    """Write a log as CSV; `dirty` damages some lines."""
    end = "\n" if dirty is None else dirty.choice(["\n", "\n", "\r\n"])
    records = [log.names] if header else []
    records += [[row[name] for name in log.names] for row in log.rows]
    lines = []
    for record in records:
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, lineterminator=end).writerow(record)
        lines.append(text.getvalue().encode())
    if dirty is not None:
        _damage_lines(dirty, lines, delimiter.encode(), header)
    content = b"".join(lines)
    if dirty is not None and dirty.random() < 0.2:
        content = b"\xef\xbb\xbf" + content
    if dirty is not None and dirty.random() < 0.2:
        content = content[: -dirty.randint(1, 12)]
    _write_bytes(path, content, dirty)


def _damage_lines(
    chance: random.Random, lines: list[bytes], delimiter: bytes, header: bool
) -> None:
    first = int(header)
    for _ in range(chance.randint(1, 8)):
        if len(lines) <= first + 1:
            return
        place = chance.randrange(first, len(lines))
        line = lines[place]
        half = len(line) // 2
        lines[place] = chance.choice(
            [
                line[:half] + b"\n",
                delimiter + line,
                b'"' + line,
                line[:half] + b"\0" + line[half:],
                line[:half] + b"\xe9" + line[half:],
                line[:half] + b"\r" + line[half:],
                b"\n" + line,
                line + lines[0],
                b"\xef\xbb\xbf" + line,
            ]
        )


def _write_bytes(path: Path, content: bytes, dirty: random.Random | None) -> None:
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
        if dirty is not None and dirty.random() < 0.15:
            content = content[: int(len(content) * 0.9)]
    path.write_bytes(content)


# --- Parquet and sequences -----------------------------------------------------------------------


def write_parquet(path: Path, log: Log, *, lists: bool) -> None:
    """Write a log with the narrowest type of each column; tags as lists if `lists`."""
    columns = {}
    for name in log.names:
        texts = [row[name] or None for row in log.rows]
        if lists and name in log.separators:
            separator = log.separators[name]
            values = [None if text is None else text.split(separator) for text in texts]
            columns[name] = pa.array(values, pa.list_(pa.string()))
        else:
            columns[name] = _typed(texts)
    pq.write_table(pa.table(columns), path)


def _typed(texts: list[str | None]) -> pa.Array:
    for convert, arrow_type in ((int, pa.int64()), (float, pa.float64())):
        try:
            values = [None if text is None else convert(text) for text in texts]
            if convert is float or all(
                v is None or str(v) == t for v, t in zip(values, texts, strict=True)
            ):
                return pa.array(values, arrow_type)
        except (ValueError, OverflowError):
            continue
    return pa.array(texts, pa.string())


def write_session_lists(path: Path, log: Log, session: str) -> None:
    """Write Parquet with one row per session, whose other columns are lists."""
    sessions: dict[str, list[Row]] = {}
    for row in log.rows:
        sessions.setdefault(row[session], []).append(row)
    columns = {session: pa.array(list(sessions), pa.string())}
    for name in log.names:
        if name != session:
            lists = [[row[name] or None for row in rows] for rows in sessions.values()]
            columns[name] = pa.array(lists, pa.list_(pa.string()))
    pq.write_table(pa.table(columns), path)


def write_sequences(
    path: Path, log: Log, shape: Shape, *, session_first: bool, dirty: random.Random | None
) -> None:
    """Write one session a line, its items separated by spaces."""
    sessions: dict[str, list[str]] = {}
    for row in log.rows:
        sessions.setdefault(row[shape.session], []).append(row[shape.item])
    lines = []
    for name, items in sessions.items():
        lines.append(" ".join([name, *items] if session_first else items).encode() + b"\n")
    if dirty is not None:
        _damage_lines(dirty, lines, b" ", header=False)
    _write_bytes(path, b"".join(lines), dirty)
