"""Random preprocessing recipes with logs that fit them, and a few that do not."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.checkouts.cases import Case, write_recipe
from benchmarks.checkouts.features import CLEAN_FEATURES, FEATURES, ID_STYLES, Draft
from benchmarks.checkouts.logs import (
    TIME_STYLES,
    Log,
    Shape,
    damage_rows,
    id_text,
    random_log,
    write_parquet,
    write_sequences,
    write_session_lists,
    write_text,
)

OPERATORS = """
from nvtabular.ops import LambdaOp, Operator


class Ratio(Operator):
    def transform(self, col_selector, df):
        first, second = (df[name] for name in col_selector.names)
        return type(df)({"ratio": first / (second.abs() + 1)})

    def column_mapping(self, col_selector):
        return {"ratio": col_selector.names}


ratio = Ratio()
rounded = [Ratio(), LambdaOp(lambda column: column.round(1))]
"""


def random_cases(seed: int, number: int, folder: Path, *, clean: bool = False) -> list[Case]:
    """Return the case of a random recipe, or two of which the second continues the first.

    With `clean`, the log has one row per line and needs no repair and no operator of the user.
    """
    chance = random.Random(f"{seed} {number}")  # noqa: S311
    folder = folder / f"random-{number:04d}"
    folder.mkdir()
    if chance.random() < 0.1 and not clean:
        return [_sequences_case(chance, folder)]
    draft = Draft(chance, folder, _shape(chance), is_clean=clean)
    if clean:
        styles = {"session_style": draft.id_style(), "item_style": draft.id_style()}
        draft.shape = replace(draft.shape, **styles)
    for position in range(chance.choice([0, 1, 2, 3, 4, 6])):
        make = chance.choice(CLEAN_FEATURES if clean else FEATURES)
        make(draft, f"f{position}")
    draft.shape = replace(draft.shape, columns=tuple(draft.columns))
    recipe = _recipe(draft)
    log_format, settings, suffix = _format(chance, clean=clean)
    logs = _write_logs(draft, draft.folder, log_format, suffix, chance.randint(1, 3))
    if log_format == "headerless":
        settings["columns"] = list(logs.names)
    recipe |= settings
    tests: tuple[str, ...] = ()
    split = recipe.get("split") or {}
    if isinstance(split, dict) and "test" not in split and chance.random() < 0.2:
        (draft.folder / "test").mkdir()
        test_shape = replace(draft.shape, num_sessions=max(5, draft.shape.num_sessions // 4))
        draft.shape = test_shape
        tests = _write_logs(draft, draft.folder / "test", log_format, suffix, 1, logs.names).files
    if chance.random() < 0.03:
        _break(chance, recipe)
    case = Case(
        folder.name,
        write_recipe(folder / "recipe.yaml", {"preprocess": recipe, **_training(chance, draft)}),
        logs.files,
        tests,
        operators=_operators_file(draft),
        may_fail=True,
    )
    if chance.random() < 0.15 and len(logs.files) > 1:
        first = replace(case, logs=logs.files[:1], tests=())
        return [first, replace(case, name=f"{case.name}-refit", base=case.name)]
    return [case]


def _shape(chance: random.Random) -> Shape:
    has_time = chance.random() < 0.85
    return Shape(
        session=chance.choice(["session_id", "user", "visit id"]),
        item=chance.choice(["item_id", "product", "sku"]),
        time=chance.choice(["t", "timestamp", "event_time"]) if has_time else None,
        time_style=chance.choice(TIME_STYLES),
        session_style=chance.choice(ID_STYLES),
        item_style=chance.choice(ID_STYLES),
        num_sessions=chance.choice([8, 40, 150, 400]),
        num_items=chance.choice([3, 20, 60, 300]),
        days=chance.choice([1, 3, 10]),
    )


# --- the rest of a recipe ------------------------------------------------------------------------


def _recipe(draft: Draft) -> dict[str, Any]:
    chance, shape = draft.chance, draft.shape
    recipe: dict[str, Any] = {"session": shape.session, "item": shape.item}
    if shape.time is not None:
        recipe["timestamp"] = _timestamp(chance, shape)
    if draft.features:
        recipe["features"] = draft.features
    recipe |= _tables(draft)
    recipe["max_sequence_length"] = chance.choice([1, 2, 5, 20, 50])
    recipe |= _split(chance, shape)
    held_out = isinstance(recipe.get("split"), str)
    options: dict[str, tuple[Any, ...]] = {
        "min_session_length": (2, 3, 4),
        "longest_session": (4, 15, 40),
        "duplicates": ("keep", "drop" if shape.time is not None else "keep"),
        "min_item_count": (1,) if held_out else (1, 2, 3),
        "drop_repeats": (True,),
        "filter_seen": (True,),
    }
    if shape.time is not None:
        options["session_gap"] = ("10m", "1h", "45s")
    for key, values in options.items():
        if chance.random() < 0.25:
            recipe[key] = chance.choice(values)
    return recipe


def _timestamp(chance: random.Random, shape: Shape) -> dict[str, Any]:
    unit = "iso" if shape.time_style.startswith("iso") else shape.time_style.partition(".")[0]
    names = ["hour", "weekday", "elapsed"]
    timestamp: dict[str, Any] = {"column": shape.time, "unit": unit}
    timestamp["features"] = [name for name in names if chance.random() < 0.3]
    if chance.random() < 0.15:
        timestamp["earliest"] = "2024-02-26 06:00:00 UTC"
    if chance.random() < 0.15:
        timestamp["latest"] = chance.choice(["2024-02-28", "2024-03-04T12:00:00+01:00"])
    return timestamp


def _split(chance: random.Random, shape: Shape) -> dict[str, Any]:
    spans: list[Any] = [0.1, 0.3]
    if shape.time is not None:
        spans += ["2h"] if shape.days == 1 else ["6h", "0.5d", "1d"]
    kind = chance.choice(["none", "valid", "test", "both", "both", "out", "last"])
    if kind == "none":
        return {}
    if kind in ("out", "last"):
        return {"split": {"out": "leave-one-out", "last": "leave-last-out"}[kind]}
    parts = {"valid": ["valid"], "test": ["test"], "both": ["valid", "test"]}[kind]
    return {"split": {part: chance.choice(spans) for part in parts}}


def _tables(draft: Draft) -> dict[str, Any]:
    """Write the tables of items and sessions, with some missing and some duplicate rows."""
    chance, shape = draft.chance, draft.shape
    counts = {"item": shape.num_items, "session": shape.num_sessions}
    ids = {"item": (shape.item, shape.item_style), "session": (shape.session, shape.session_style)}
    keys = {}
    for of, columns in draft.tables.items():
        if not columns:
            continue
        log_key, style = ids[of]
        key = chance.choice([log_key, "key"])
        log = Log([key, *(c.name for c in columns)], [])
        for number in range(int(counts[of] * 1.2)):
            row = {key: id_text(style, number), **{c.name: c.draw(chance) for c in columns}}
            log.rows += [row] * chance.choice([0, 1, 1, 1, 1, 2])
        suffix = chance.choice([".csv", ".tsv.gz", ".parquet"])
        path = draft.folder / f"{of}-table{suffix}"
        if suffix == ".parquet":
            write_parquet(path, log, lists=False)
        else:
            write_text(path, log, "\t" if "tsv" in suffix else ",", header=True, dirty=None)
        keys[f"{of}_table"] = {"file": str(path), **({} if key == log_key else {"key": key})}
    return keys


def _training(chance: random.Random, draft: Draft) -> dict[str, Any]:
    """Return sections that preprocessing ignores."""
    categories = [f["name"] for f in draft.features if f["kind"] == "categorical"]
    if not categories or chance.random() < 0.5:
        return {}
    weights = {"feature": categories[0], "values": {"sku-00001": 3.0, 2: 0.5}, "default": 1.0}
    return {"model": {"architecture": "gru"}, "train": {"weights": weights}}


def _break(chance: random.Random, recipe: dict[str, Any]) -> None:
    """Add a mistake that both checkouts must refuse."""
    recipe |= chance.choice(
        [
            {"max_sequence_lenght": 20},
            {"item": "no such column"},
            {"min_item_count": 100_000},
            {"split": {"valid": "2 weeks"}},
            {"timestamp": {"column": "no such column"}},
            {"format": "parquet"},
        ]
    )


# --- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """Files of one log and the order of their columns."""

    files: tuple[str, ...]
    names: tuple[str, ...]


def _format(chance: random.Random, *, clean: bool) -> tuple[str, dict[str, Any], str]:
    """Return (format, settings of the recipe, suffix of the files)."""
    choices: list[tuple[str, dict[str, Any], str]] = [
        ("text", {}, ".csv"),
        ("text", {}, ".csv.gz"),
        ("text", {}, ".tsv"),
        ("text", {}, ".tsv.gz"),
        ("text", {"delimiter": ";"}, ".txt"),
        ("text", {"format": "csv", "delimiter": "|"}, ".log"),
        ("headerless", {"delimiter": ","}, ".dat.gz"),
        ("parquet", {}, ".parquet"),
        ("parquet", {}, ".pq"),
    ]
    choices += [] if clean else [("lists", {}, ".parquet")]
    return chance.choice(choices)


def _write_logs(
    draft: Draft,
    folder: Path,
    log_format: str,
    suffix: str,
    count: int,
    names: tuple[str, ...] | None = None,
) -> Files:
    """Write a random log of the draft's shape in `count` files; the paths may be their folder."""
    chance, shape = draft.chance, draft.shape
    log = random_log(chance, shape)
    if names is not None:
        log.names = list(names)
    dirty = chance if chance.random() < 0.35 and not draft.is_clean else None
    if dirty is not None:
        damage_rows(chance, log, shape)
    delimiter = {".tsv": "\t", ".tsv.gz": "\t", ".txt": ";", ".log": "|"}.get(suffix, ",")
    folder = folder / "logs"
    folder.mkdir()
    paths = []
    for number in range(count):
        part = Log(log.names, log.rows[number::count], log.separators)
        if chance.random() < 0.5:  # whole sessions in one file
            size = -(-len(log.rows) // count)
            part.rows = log.rows[number * size : (number + 1) * size]
        path = folder / f"log-{number}{suffix}"
        if log_format == "parquet":
            write_parquet(path, part, lists=chance.random() < 0.5 and not draft.is_clean)
        elif log_format == "lists":
            write_session_lists(path, part, shape.session)
        else:
            write_text(path, part, delimiter, header=log_format == "text", dirty=dirty)
        paths.append(str(path))
    if count > 1 and chance.random() < 0.2:
        paths = [str(folder)]
    return Files(tuple(paths), tuple(log.names))


def _operators_file(draft: Draft) -> str | None:
    if not draft.uses_operators:
        return None
    path = draft.folder / "operators.py"
    path.write_text(OPERATORS, encoding="utf-8")
    return str(path)


def _sequences_case(chance: random.Random, folder: Path) -> Case:
    """Return a case whose log has one session per line."""
    style = chance.choice(["int", "large", "negative", "padded", "text", "mixed"])
    shape = replace(_shape(chance), time=None, session_style="text", item_style=style)
    session_first = chance.random() < 0.5
    recipe: dict[str, Any] = {"format": "sequences", "session_first": session_first}
    recipe["max_sequence_length"] = chance.choice([1, 5, 20])
    recipe |= _split(chance, shape)
    if chance.random() < 0.3:
        recipe["drop_repeats"] = True
    paths = []
    for number in range(chance.randint(1, 2)):
        path = folder / f"sequences-{number}.txt{chance.choice(['', '.gz'])}"
        dirty = chance if chance.random() < 0.3 else None
        log = random_log(chance, shape)
        write_sequences(path, log, shape, session_first=session_first, dirty=dirty)
        paths.append(str(path))
    recipe_file = write_recipe(folder / "recipe.yaml", {"preprocess": recipe})
    return Case(folder.name, recipe_file, tuple(paths), may_fail=True)
