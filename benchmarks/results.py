"""`python -m benchmarks results`: the tables of accuracy in docs/, from raw logs.

The logs are public, but not part of the project; the names of their files are in `TABLES`. Every
table comes from preprocess, train and `pipeline compare`, with recipes of the project.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from pipeline import Recipe, compare, preprocess, train
from pipeline.core.errors import ConfigError
from pipeline.evaluation.comparison.result import Comparison
from pipeline.evaluation.result import with_margin
from pipeline.evaluation.targets import Positions
from pipeline.recipe.published import published_recipes
from pipeline.training.seeds import train_seeds

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results: {} -->", "<!-- end of results -->"
"""Lines around a table in a document."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model of a table."""

    recipe: str | None
    """File of the project, or name of a published recipe; None for the defaults."""
    settings: tuple[str, ...] = ()
    """`section.key=value`."""
    seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class Table:
    """Models and baselines on the same targets."""

    log: tuple[str, ...]
    """Files of the log, below the folder of all logs."""
    recipe: str
    """Recipe of the data, a file of the project."""
    rows: dict[str, Row]
    test: tuple[str, ...] = ()
    """Files of the test sessions, if the recipe does not split them."""
    settings: tuple[str, ...] = ()
    """`section.key=value` of the data."""
    positions: Positions | None = None
    metrics: tuple[str, ...] = ("recall@20", "mrr@20", "ndcg@20")
    baselines: bool = True
    join: Callable[[list[Path], Path], Path] | None = None
    """Function that joins the files of a folder to one log."""


def _movielens(files: list[Path], folder: Path) -> Path:
    """Join ratings with the columns of their movies and users."""
    tables = [pd.read_csv(file, sep="\t", dtype=str) for file in files]
    log, items, users = (t.rename(columns=lambda name: name.split(":")[0]) for t in tables)
    log = log.merge(items, on="item_id", how="left").merge(users, on="user_id", how="left")
    path = folder / "ml-100k.csv"
    log.to_csv(path, index=False)
    return path


def _sessions(count: int) -> Callable[[list[Path], Path], Path]:
    """Keep the newest sessions of a log with SessionId and Time."""

    def newest(files: list[Path], folder: Path) -> Path:
        log = pd.read_csv(files[0], sep="\t", dtype=str)
        last = log["Time"].astype(float).groupby(log["SessionId"]).max().nlargest(count)
        path = folder / "newest.tsv"
        log[log["SessionId"].isin(last.index)].to_csv(path, sep="\t", index=False)
        return path

    return newest


_RSC15 = ("rsc15-100k/train.tsv.gz",)
_AMAZON = Table(
    log=("beauty/sequences.txt.gz",),
    recipe="configs/beauty.yaml",
    rows={"defaults": Row(recipe=None), "beauty.yaml": Row(recipe="configs/beauty.yaml")},
    metrics=("recall@10", "ndcg@10"),
)
_VALIDATED = ("preprocess.split=leave-one-out",)

_SMALL = Table(
    log=_RSC15,
    recipe="configs/rsc15.yaml",
    settings=("preprocess.split={valid: 0.1, test: 0.2}",),
    rows={"defaults": Row(recipe=None, seeds=3)},
)

TABLES: dict[str, Table] = {
    "rsc15": Table(
        log=_RSC15,
        test=("rsc15-100k/test.tsv.gz",),
        recipe="configs/rsc15.yaml",
        rows={
            "defaults": Row(recipe=None, seeds=3),
            "defaults with repeats": Row(recipe=None, settings=("model.repeats=0.1",), seeds=3),
            "rsc15.yaml": Row(recipe="configs/rsc15.yaml", seeds=3),
        },
    ),
    "diginetica": Table(
        log=("diginetica/train_sessions.txt.gz",),
        test=("diginetica/test_pairs.txt.gz",),
        recipe="configs/diginetica.yaml",
        rows={"diginetica.yaml": Row(recipe="configs/diginetica.yaml")},
        positions="last",
        metrics=("recall@20", "mrr@20"),
    ),
    "beauty": _AMAZON,
    "beauty-leave-one-out": replace(
        _AMAZON,
        settings=_VALIDATED,
        rows={"defaults": Row(recipe=None)},
    ),
    "sports": replace(
        _AMAZON,
        log=("sports/sequences.txt.gz",),
        recipe="configs/sports.yaml",
        rows={"defaults": Row(recipe=None), "sports.yaml": Row(recipe="configs/sports.yaml")},
    ),
    "rees46": Table(
        log=("rees46-sample/events.csv.gz",),
        recipe="configs/rees46.yaml",
        rows={
            "defaults": Row(recipe=None, seeds=3),
            "rees46.yaml": Row(recipe="configs/rees46.yaml", seeds=3),
        },
    ),
    "rees46-items-only": Table(
        log=("rees46-sample/events.csv.gz",),
        recipe="configs/rees46.yaml",
        settings=("preprocess.features=[]", "preprocess.timestamp.features=[]"),
        rows={"defaults": Row(recipe=None, seeds=3)},
    ),
    "rsc15-1000": replace(_SMALL, join=_sessions(1_000)),
    "rsc15-4000": replace(_SMALL, join=_sessions(4_000)),
    "ml-100k": Table(
        log=tuple(f"ml-100k/ml-100k.{name}.tsv.gz" for name in ("inter", "item", "user")),
        join=_movielens,
        recipe="configs/ml-100k.yaml",
        rows={
            "defaults": Row(recipe=None),
            "ml-100k.yaml": Row(recipe="configs/ml-100k.yaml"),
        },
        metrics=("recall@10", "ndcg@10"),
    ),
    "models": Table(  # the last training day as the test, so that the test day is not looked at
        log=_RSC15,
        recipe="configs/rsc15.yaml",
        settings=("preprocess.split={valid: 0.1, test: 1d}",),
        rows={name: Row(recipe=name) for name in published_recipes()},
    ),
}
"""Tables by the name in their documents."""


def check_names(names: tuple[str, ...]) -> None:
    """ConfigError for an unknown table."""
    for name in names:
        if name not in TABLES:
            raise ConfigError(f"There is no table {name!r}, expected {', '.join(TABLES)}.")


def measure_results(
    logs: Path, folder: Path, names: tuple[str, ...], seeds: int | None
) -> Iterator[tuple[str, str]]:
    """Yield name and Markdown of each table; data and runs stay in `folder` and are reused.

    `logs` is the folder of all logs. `seeds` changes the number of seeds of every row. ConfigError
    for a missing log.
    """
    for name in names or TABLES:
        yield name, _measure(TABLES[name], logs, folder / name, seeds)


def _measure(table: Table, logs: Path, folder: Path, seeds: int | None) -> str:
    data = _preprocess(table, logs, folder)
    comparison = compare(
        [
            _train(row, data, folder / label, seeds or row.seeds)
            for label, row in table.rows.items()
        ],
        data,
        positions=table.positions,
        cutoffs=tuple(sorted({int(metric.partition("@")[2]) for metric in table.metrics})),
        baselines=table.baselines,
    )
    return _markdown(table, comparison, folder)


def _preprocess(table: Table, logs: Path, folder: Path) -> Path:
    data = folder / "data"
    files, test = ([logs / file for file in each] for each in (table.log, table.test))
    for file in (*files, *test):
        if not file.is_file():
            raise ConfigError(f"{file} does not exist. The files of each log are in {__file__}.")
    if data.is_dir():
        return data
    folder.mkdir(parents=True, exist_ok=True)
    if table.join is not None:
        files = [table.join(files, folder)]
    preprocess(Recipe.load(ROOT / table.recipe, table.settings), files, test=test, out=data)
    return data


def _train(row: Row, data: Path, out: Path, seeds: int) -> Path:
    """Return the path of the run or runs; a file beside it has the processor time."""
    seconds = _seconds_file(out)
    if seconds.exists():
        return out
    logger.info("%s: training", out)
    is_file = row.recipe is not None and row.recipe.endswith(".yaml")
    recipe = Recipe.load(ROOT / str(row.recipe) if is_file else row.recipe, row.settings)
    begin = time.process_time()
    if seeds > 1:
        train_seeds(data, recipe, out, seeds)
    else:
        train(recipe, data, out=out)
    seconds.write_text(f"{(time.process_time() - begin) / seeds:.0f} s", encoding="utf-8")
    return out


def _seconds_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.seconds")


def _markdown(table: Table, comparison: Comparison, folder: Path) -> str:
    heads = [metric.upper().replace("RECALL", "HR") for metric in table.metrics]
    lines = [
        f"| {comparison.targets:,} targets, {comparison.catalogue_items:,} items | "
        f"{' | '.join(heads)} | processor time |",
        f"| --- |{' --- |' * (len(heads) + 1)}",
    ]
    for name, row in comparison.rows.items():
        label = f"{name}, {len(row.runs)} seeds" if len(row.runs) > 1 else name
        cells = []
        for metric in table.metrics:
            value = row.results[metric]
            text = with_margin(0.0 if value is None else value, row.margins.get(metric))
            cells.append(f"**{text}**" if comparison.is_best(metric, name) else text)
        cells.append(_processor_time(table, folder, name) if row.runs else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _processor_time(table: Table, folder: Path, name: str) -> str:
    label = name.removesuffix(" (run)")  # a run with the name of a baseline has this suffix
    return _seconds_file(folder / label).read_text("utf-8") if label in table.rows else ""


def write_tables(document: Path, tables: Mapping[str, str]) -> list[str]:
    """Replace the tables of a document between their marker lines; return their names."""
    text = document.read_text(encoding="utf-8")
    written = []
    for name, table in tables.items():
        begin = BEGIN.format(name)
        before, line, rest = text.partition(begin + "\n")
        if not line:
            continue
        _, line, after = rest.partition(END)
        if not line:
            raise ConfigError(f"{document} has `{begin}` without `{END}` behind it.")
        text = f"{before}{begin}\n{table}\n{END}{after}"
        written.append(name)
    document.write_text(text, encoding="utf-8")
    return written
