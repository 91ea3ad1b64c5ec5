"""Generated logs, damaged in a controlled way, with the rows that must survive."""

import gzip
import random
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

START = 1_600_000_000
COLUMNS = ("session_id", "item_id", "t", "price", "hue")
HUES = ("red", "blue", "grün", "a, b", 'say "hi"', "")
SECONDS = 10**6

Row = dict[str, str]
Session = list[tuple[int, str, float | None, str | None]]


@dataclass
class Case:
    """Files in a folder and what is to be expected of them."""

    recipe: dict[str, object]
    files: list[Path]
    sessions: dict[str, Session]
    """Those that no damage reached, by time."""
    read: int | None
    """Number of rows that must be counted as read; None if it cannot be computed."""
    may_refuse: bool
    done: list[str] = field(default_factory=list)
    """What was done, for the one who looks for the reason."""


@dataclass
class _File:
    rows: list[Row]
    kind: str
    columns: list[str]
    touched: set[str] = field(default_factory=set)
    refused: bool = False
    unknown: bool = False


def make_case(seed: int, folder: Path, *, wild: bool = False) -> Case:
    """`wild` flips any bytes: then the only expectation is that there is no crash."""
    chance = random.Random(seed)
    rows = _rows(chance)
    recipe: dict[str, object] = {
        "duplicates": chance.choice(["keep", "drop"]),
        "longest_session": chance.choice([None, 40]),
        "features": [
            {"name": "price", "kind": "continuous"},
            {"name": "hue", "kind": "categorical"},
        ],
    }
    time: dict[str, object] = {"column": "t", "unit": "s"}
    if chance.random() < 0.5:
        time |= {"earliest": "2019-01-01", "latest": "2022-12-31"}
    recipe["timestamp"] = time
    done = [damage.__name__ for damage in _ROWS if chance.random() < 0.4 and damage(rows, chance)]
    chance.shuffle(rows)
    files, paths = [], []
    for number in range(chance.randint(1, 4)):
        kind = chance.choice(["csv", "csv", "tsv", "csv.gz", "parquet"])
        columns = list(COLUMNS)
        chance.shuffle(columns)
        files.append(_File([], kind, columns))
        paths.append(folder / f"log-{number}.{kind}")
    for row in rows:
        chance.choice(files).rows.append(row)
    hidden = chance.random() < 0.3 and len(files) > 1
    for file, path in zip(files, paths, strict=True):
        if hidden and file is not files[0]:
            file.columns.remove("hue")
            for row in file.rows:
                row["hue"] = ""
        done.append(path.name)
        done += _write(file, path, chance, wild)
    for number in range(chance.randint(0, 2)):
        paths.insert(0, _empty(folder, number, chance))
    touched = set().union(*(file.touched for file in files))
    sessions = _expected(rows, recipe, time)
    certain = {name: s for name, s in sessions.items() if name not in touched}
    is_exact = not wild and not any(file.unknown for file in files)
    return Case(
        recipe,
        paths,
        {} if wild else certain,
        sum(len(file.rows) for file in files) if is_exact else None,
        wild or not certain or any(file.refused for file in files),
        done,
    )


def _rows(chance: random.Random) -> list[Row]:
    text = chance.random() < 0.5
    rows = []
    for number in range(chance.randint(1, 25)):
        time = START + chance.randrange(30 * 86_400)
        for _ in range(chance.randint(1, 8)):
            time += chance.randint(1, 900)
            rows.append(
                {
                    "session_id": f"s{number}" if text else str(number),
                    "item_id": str(chance.randrange(30)),
                    "t": str(time),
                    "price": chance.choice(["", "1.5", "20", "-3"]),
                    "hue": chance.choice(HUES),
                }
            )
    return rows


# --- damage to rows, whose outcome is known ----------------------------------------------------


def _duplicated(rows: list[Row], chance: random.Random) -> bool:
    rows += [dict(row) for row in chance.choices(rows, k=chance.randint(1, 5))]
    return True


def _wrong_clock(rows: list[Row], chance: random.Random) -> bool:
    for row in chance.choices(rows, k=2):
        row["t"] = str(int(row["t"]) + chance.choice([-1, 1]) * 86_400 * 8_000)
    return True


def _no_time(rows: list[Row], chance: random.Random) -> bool:
    for row in chance.choices(rows, k=2):
        row["t"] = chance.choice(["", "soon", "nan", "inf", "1e300", "99999999999999999999"])
    return True


def _no_session(rows: list[Row], chance: random.Random) -> bool:
    for row in chance.choices(rows, k=2):
        row["session_id"] = ""
    return True


def _no_number(rows: list[Row], chance: random.Random) -> bool:
    for row in chance.choices(rows, k=4):
        row["price"] = chance.choice(["NaN", "inf", "-Infinity", "1e400", "cheap", "yes"])
    return True


def _mixed_ids(rows: list[Row], chance: random.Random) -> bool:
    for row in chance.choices(rows, k=4):
        row["item_id"] = chance.choice(["007", "sku-1", "3.0", "-0", "", "1e16"])
    return True


def _bot(rows: list[Row], chance: random.Random) -> bool:
    rows += [
        dict(zip(COLUMNS, ("bot", "1", str(START + n), "", "red"), strict=True))
        for n in range(chance.choice([41, 3_000]))
    ]
    return True


_ROWS: list[Callable[[list[Row], random.Random], bool]] = [
    _duplicated, _wrong_clock, _no_time, _no_session, _no_number, _mixed_ids, _bot,
]  # fmt: skip


def _expected(
    rows: list[Row], recipe: dict[str, object], time: dict[str, object]
) -> dict[str, Session]:
    sessions: dict[str, Session] = defaultdict(list)
    for row in rows:
        if not row["session_id"] or not re.fullmatch(r"-?\d{1,12}", row["t"]):
            continue
        at = int(row["t"])
        if "earliest" in time and not 1_546_300_800 <= at < 1_672_531_200:
            continue
        price = float(row["price"]) if re.fullmatch(r"-?[\d.]+", row["price"]) else None
        sessions[row["session_id"]].append(
            (at * SECONDS, row["item_id"] or None, price, row["hue"] or None)  # type: ignore[arg-type]
        )
    for name, session in sessions.items():
        if recipe["duplicates"] == "drop":
            session = list(dict.fromkeys(session))
        sessions[name] = sorted(session, key=str)
    longest = recipe["longest_session"] or 10**9
    return {name: s for name, s in sessions.items() if len(s) <= longest}  # type: ignore[operator]


# --- damage to files ---------------------------------------------------------------------------


def _write(file: _File, path: Path, chance: random.Random, wild: bool) -> list[str]:
    if file.kind == "parquet":
        return _write_parquet(file, path, chance, wild)
    delimiter = "\t" if file.kind == "tsv" else ","
    always = chance.random() < 0.3
    end = chance.choice(["\n", "\n", "\r\n"])
    lines = [_line(file.columns, dict(zip(COLUMNS, COLUMNS, strict=True)), delimiter, False)]
    lines += [_line(file.columns, row, delimiter, always) for row in file.rows]
    done = []
    for damage in _LINES:
        if file.rows and chance.random() < 0.3:
            damage(file, lines, delimiter, chance)
            done.append(damage.__name__)
    for line in (lines[0], b"", b""):
        if chance.random() < 0.2:
            lines.insert(chance.randint(1, max(1, len(lines) - 1)), line)
            done.append("header" if line else "blank")
    content = b"".join(line + end.encode() for line in lines)
    if file.rows and chance.random() < 0.3:
        content = content[: -chance.randint(1, len(lines[-1]) + len(end))]
        last = file.rows[-1]["session_id"]  # what is left of it may be another's id
        file.touched |= {last[:end] for end in range(1, len(last) + 1)}
        done.append("cut line")
    if wild:
        content = _flipped(content, chance)
    if chance.random() < 0.2:
        content += b"\0" * chance.choice([1, 700])
    file_lines = len([x for x in re.split(rb"\r\n|\r|\n", content.replace(b"\0", b"")) if x])
    file.rows = file.rows[:0] + [{}] * max(0, file_lines - 1)  # as many as there are lines now
    mark = chance.random()
    if mark < 0.2 and not wild and _is_utf8(content):
        kind = chance.choice(["utf-16-le", "utf-16-be"])
        content = ("\ufeff" + content.decode()).encode(kind)
        done.append(kind)
    elif mark < 0.4:
        content = b"\xef\xbb\xbf" + content
    if file.kind == "csv.gz":
        content = gzip.compress(content, mtime=0)
        if chance.random() < 0.3:
            content = (
                content[: chance.randrange(len(content))]
                if chance.random() < 0.5
                else _flipped(content, chance)
            )
            file.refused = file.unknown = True
            file.touched |= _ALL
            done.append("gzip")
    path.write_bytes(content)
    return done


_ALL = {f"s{n}" for n in range(30)} | {str(n) for n in range(30)} | {"bot"}


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _line(columns: list[str], row: Row, delimiter: str, always: bool) -> bytes:
    values = []
    for name in columns:
        value = row[name]
        if always or delimiter in value or '"' in value:
            value = '"' + value.replace('"', '""') + '"'
        values.append(value)
    return delimiter.join(values).encode()


def _pick(file: _File, chance: random.Random) -> int:
    """A line that will be damaged; its session is not compared."""
    at = chance.randrange(len(file.rows))
    file.touched.add(file.rows[at]["session_id"])
    return at + 1


def _open_quote(file: _File, lines: list[bytes], delimiter: str, chance: random.Random) -> None:
    at = _pick(file, chance)
    values = lines[at].split(delimiter.encode())
    place = chance.randrange(len(values))
    values[place] = b'"x' + values[place].replace(b'"', b"")
    lines[at] = delimiter.encode().join(values)


def _garbage(file: _File, lines: list[bytes], delimiter: str, chance: random.Random) -> None:
    at = _pick(file, chance)
    place = chance.randint(0, len(lines[at]))
    junk = bytes(chance.choice([1, 9, 44, 59, 127, 129, 200, 255]) for _ in range(5))
    if b'"' not in lines[at]:  # else a quote may open a value that was closed
        lines[at] = lines[at][:place] + b"z" + junk + lines[at][place:]


def _carriage_return(
    file: _File, lines: list[bytes], delimiter: str, chance: random.Random
) -> None:
    at = _pick(file, chance)
    if b'"' not in lines[at]:
        lines[at] = lines[at].replace(delimiter.encode(), b"\r" + delimiter.encode(), 1)


def _windows(file: _File, lines: list[bytes], delimiter: str, chance: random.Random) -> None:
    at = chance.randrange(1, len(lines))
    lines[at] = lines[at].replace("ü".encode(), "ü".encode("cp1252"))


def _nul(file: _File, lines: list[bytes], delimiter: str, chance: random.Random) -> None:
    at = chance.randrange(len(lines))
    place = chance.randint(0, len(lines[at]))
    lines[at] = lines[at][:place] + b"\0" + lines[at][place:]


def _short(file: _File, lines: list[bytes], delimiter: str, chance: random.Random) -> None:
    lines[_pick(file, chance)] = chance.choice([b"x", b" ", delimiter.encode() * 9, b"\xff,\xfe"])


def _long(file: _File, lines: list[bytes], delimiter: str, chance: random.Random) -> None:
    lines[_pick(file, chance)] = b"y" * chance.choice([2_000, 30_000])


_LINES: list[Callable[[_File, list[bytes], str, random.Random], None]] = [
    _open_quote, _garbage, _carriage_return, _windows, _nul, _short, _long,
]  # fmt: skip


def _flipped(content: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        if damaged:
            damaged[chance.randrange(len(damaged))] = chance.choice(
                [0, 9, 10, 13, 34, 34, 44, 255, chance.randrange(256)]
            )
    return bytes(damaged)


def _write_parquet(file: _File, path: Path, chance: random.Random, wild: bool) -> list[str]:
    columns: dict[str, pa.Array] = {}
    for name in file.columns:
        texts: list[str | None] = [row[name] or None for row in file.rows]
        columns[name] = pa.array(texts, pa.string())
        if name == "hue" and chance.random() < 0.3:
            codec = chance.choice(["utf-8", "cp1252"])
            columns[name] = pa.array([t and t.encode(codec) for t in texts], pa.binary())
        try:
            if chance.random() < 0.5:  # types of their own, where nothing is lost
                whole = columns[name].cast(pa.int64())
                same = whole.cast(pa.string()).equals(columns[name])
                columns[name] = whole if same else columns[name]
        except pa.ArrowInvalid:
            pass
    pq.write_table(pa.table(columns), path)
    if wild or chance.random() < 0.1:
        content = path.read_bytes()
        path.write_bytes(content[: chance.randrange(len(content))])
        file.refused = file.unknown = True
        return ["cut parquet"]
    return []


def _empty(folder: Path, number: int, chance: random.Random) -> Path:
    kind = chance.choice(["csv", "csv.gz", "parquet", "head.csv", "head.parquet"])
    path = folder / f"empty-{number}.{kind}"
    match kind:
        case "head.csv":
            path.write_text(",".join(COLUMNS) + "\r\n\n")
        case "head.parquet":
            pq.write_table(pa.table({name: pa.array([], pa.string()) for name in COLUMNS}), path)
        case _:
            path.write_bytes(b"")
    return path
