"""`pipeline preprocess`: logs in, a data directory out."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.core.artifact import check_replaceable, new_artifact, read_manifest
from pipeline.core.columns import FITTED_DIRECTORY, SESSION, SESSIONS_DIRECTORY, TIMESTAMP
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.merlin import begin_import, has_cudf
from pipeline.data import fingerprint as identity
from pipeline.data.fitted import ITEMS_FILE, Fitted, ValueType
from pipeline.logs.files import check_tables, find_logs
from pipeline.preprocessing import engine
from pipeline.preprocessing.cluster import check_shared, on_cluster
from pipeline.preprocessing.item_values import ItemValues
from pipeline.preprocessing.report.counting import Totals, Window, window_of
from pipeline.preprocessing.report.run import write_report
from pipeline.preprocessing.split import LEFT_OUT, parts_of, rows_of, split_sessions
from pipeline.recipe.preprocess import Preprocess

_ROW_GROUP_SESSIONS = 65_536
"""Rows that the dataloader reads at a time."""
_FAR_MICROSECONDS = 10 * 365 * 86_400 * 10**6


def preprocess(
    recipe: Preprocess,
    inputs: list[Path],
    test_inputs: list[Path],
    out: Path,
    *,
    cluster: str | None = None,
    base: Path | None = None,
    operators: Path | None = None,
) -> dict[str, Any]:
    """Write sessions, schema, fitted state and manifest to `out`; return the manifest's facts.

    Statistics come from the training sessions alone, and the items from all interactions where
    the last ones are held out. `inputs` are files and folders of logs;
    `test_inputs` are such of their own, in place of `split.test`. `cluster` is the address of a
    Dask scheduler, whose workers see the folder of `out` under the same path; what is written does
    not depend on it. `base` is an earlier data directory: what it knows keeps its index, what is
    new gets the next ones, and numbers keep their scale. `operators` is a Python file, which is
    run, with the NVTabular operators that features of the recipe name.
    """
    if test_inputs and recipe.split.held_out:
        raise ConfigError(
            f"`split: {recipe.split.by}` takes the test from the log itself. Leave out --test, or "
            "split by time."
        )
    if test_inputs and recipe.split.test is not None:
        raise ConfigError(
            "Both --test and `split.test` name the test sessions. Give --test files, or leave "
            "the choice to `split.test` in the recipe."
        )
    if recipe.split.valid or recipe.split.test:
        _check_times(recipe)
    check_replaceable(out, "data")
    check_tables(recipe)
    inputs, test_inputs = find_logs(recipe, inputs), find_logs(recipe, test_inputs)
    made_from = identity.of_data(recipe, inputs, test_inputs, base, operators)
    known = None if base is None else _known(recipe, base)
    facts: dict[str, Any] = {}
    imported = None
    if cluster is None and operators is None:  # a file of operators may import parts of it itself
        imported = begin_import("pipeline.preprocessing.workflow")  # a log is read without
    with (
        engine.lazy_copies(),
        new_artifact(out, "data", facts, made_from=made_from) as directory,
        # beside what is written: large, and seen by the workers
        tempfile.TemporaryDirectory(dir=directory) as scratch,
        on_cluster(cluster) as client,
        engine.workers(client) as pool,
        tqdm(desc="read", unit="row", unit_scale=True, leave=False, disable=None) as progress,
    ):
        if client is not None:
            check_shared(client, Path(scratch))
        types: dict[str, ValueType] | None = None
        if known is not None:
            types = {name: vocabulary.type for name, vocabulary in known.of_columns.items()}
            types |= {name: encoding.type for name, encoding in known.target_encodings.items()}
        log = _read(recipe, inputs, Path(scratch) / "log", pool, types, operators)
        if imported is not None:
            imported()
        from pipeline.preprocessing.schema_file import write_schema
        from pipeline.preprocessing.workflow import with_items

        facts["engine"] = "cudf" if has_cudf() else "pandas"
        facts["rows"] = {"input": log.report.facts(log.rows)}
        facts["notes"] = _notes(recipe, log, known)
        places = _places(recipe, log)
        progress.set_description("fit")
        progress.update(log.rows)
        fitted, every_item = engine.learn(recipe, log, places, pool, known)
        if recipe.split.held_out:
            fitted = with_items(fitted, every_item)
        if not len(fitted.item.values):
            trained = sum(
                int(rows_of(recipe, place, part.lengths)["train"].sum())
                for place, part in zip(places, log.parts, strict=True)
            )
            raise DataError(
                f"No item for training: none is seen {recipe.min_item_count} times or more in "
                f"{trained} interactions. Check `item` or lower `min_item_count`."
            )
        fitted.write(directory)
        sources: dict[str, tuple[engine.Log, list[np.ndarray] | None]] = dict.fromkeys(
            parts_of(recipe), (log, places)
        )
        if test_inputs:
            test_log = _read(
                recipe, test_inputs, Path(scratch) / "test", pool, log.types, operators
            )
            facts["rows"]["test"] = test_log.report.facts(test_log.rows)
            sources["test"] = (test_log, None)
        progress.set_description("transform")
        facts["sessions"] = {}
        items = ItemValues(fitted)
        learned = fitted if client is None else directory
        window = _window(recipe, [source for source, _ in sources.values()])
        totals = {name: Totals(fitted, window) for name in sources}
        for name, (source, chosen) in sources.items():
            found = engine.sessions_of(learned, source, chosen, name, pool, window)
            facts["sessions"][name] = _write_part(
                fitted, directory, name, found, items, totals[name]
            )
        if (known_items := items.table(log.of_items)) is not None:
            pq.write_table(known_items, directory / FITTED_DIRECTORY / ITEMS_FILE)
        write_schema(engine.schema_of(fitted, log), recipe, directory)
        facts["catalogue_items"] = len(fitted.item.values)
        if known is not None:
            facts["new_items"] = len(fitted.item.values) - len(known.item.values)
        facts["max_sequence_length"] = recipe.max_sequence_length
        progress.set_description("report")
        facts["left_out"] = _left_out(recipe, log, places)
        facts |= write_report(directory, fitted, facts, totals, facts["left_out"])
    return facts


def _left_out(recipe: Preprocess, log: engine.Log, places: list[np.ndarray]) -> dict[str, int]:
    """Sessions that are too short for training, and in no other part."""
    short = [place == LEFT_OUT for place in places]
    if count := recipe.split.held_out:  # others have a target in another part
        short = [one & (part.lengths <= count) for one, part in zip(short, log.parts, strict=True)]
    rows = [part.lengths[one] for one, part in zip(short, log.parts, strict=True)]
    return {"sessions": sum(map(len, rows)), "interactions": sum(int(r.sum()) for r in rows)}


def _window(recipe: Preprocess, logs: list[engine.Log]) -> Window | None:
    """The hours that the report counts."""
    if recipe.timestamp is None:
        return None
    parts = [part for log in logs for part in log.parts]
    ends = np.concatenate([part.ends for part in parts])
    return window_of(min(part.first for part in parts), int(np.median(ends)), int(ends.max()))


def _known(recipe: Preprocess, base: Path) -> Fitted:
    """What `base` learned. ConfigError where the recipe asks for other features."""
    read_manifest(base, "data")
    known = Fitted.read(base)
    for name, one, other in (
        ("features", recipe.feature_meanings, known.recipe.feature_meanings),
        ("time features", recipe.time_feature_names, known.recipe.time_feature_names),
    ):
        if one != other:
            raise ConfigError(
                f"The recipe's {name} are not those of {base}. Preprocess all logs without --from, "
                "or give the recipe that it was made with."
            )
    return known


def _read(
    recipe: Preprocess,
    files: list[Path],
    directory: Path,
    pool: engine.Workers,
    types: dict[str, ValueType] | None,
    operators: Path | None,
) -> engine.Log:
    directory.mkdir()
    directory.chmod(0o777)  # workers may run as somebody else
    return engine.read_sorted(recipe, files, directory, pool, types, operators)


def _places(recipe: Preprocess, log: engine.Log) -> list[np.ndarray]:
    """The parts of all sessions, for each part of the log."""
    ends = np.concatenate([part.ends for part in log.parts])
    lengths = np.concatenate([part.lengths for part in log.parts])
    found = split_sessions(recipe, ends, lengths)
    return np.split(found, np.cumsum([len(part.lengths) for part in log.parts])[:-1])


def _check_times(recipe: Preprocess) -> None:
    for name in ("valid", "test"):
        share = getattr(recipe.split, name)
        if isinstance(share, str) and recipe.timestamp is None:
            raise ConfigError(
                f"`split.{name}: {share}` is a span of time but the recipe has no `timestamp`. "
                "Add one, or use a fraction."
            )


def _write_part(
    fitted: Fitted,
    directory: Path,
    name: str,
    found: Iterable[tuple[pa.Table, engine.Facts]],
    items: ItemValues,
    totals: Totals,
) -> dict[str, Any]:
    """Write sessions in row groups of one size, however they come."""
    target = directory / SESSIONS_DIRECTORY / name
    target.mkdir(parents=True)
    count = interactions = 0
    spans: list[tuple[int, int]] = []
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.Table] = []
    for table, part_facts in found:
        items.add(part_facts.items)
        totals.add(part_facts.counts)
        spans.append((part_facts.first, part_facts.last))
        interactions += part_facts.interactions
        count += table.num_rows
        if writer is None:
            writer = pq.ParquetWriter(
                target / "part-0.parquet", table.schema, use_dictionary=_repeating(table.schema)
            )
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= _ROW_GROUP_SESSIONS:
            waiting = [_write_groups(writer, pa.concat_tables(waiting))]
    assert writer is not None  # noqa: S101  no part is without a session
    rest = pa.concat_tables(waiting)
    if rest.num_rows:
        writer.write_table(rest)
    writer.close()
    first, last = min(first for first, _ in spans), max(last for _, last in spans)
    return {
        "sessions": count,
        "interactions": interactions,
        "first": _date(first) if fitted.recipe.timestamp else None,
        "last": _date(last) if fitted.recipe.timestamp else None,
    }


def _repeating(schema: pa.Schema) -> list[str]:
    """Parquet's names of the columns whose values occur again and again: neither ids of sessions
    nor times, for which a dictionary takes time and space."""
    return [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in schema
        if field.name not in (SESSION, TIMESTAMP)
    ]


def _write_groups(writer: pq.ParquetWriter, table: pa.Table) -> pa.Table:
    """Write whole row groups; the rest."""
    whole = table.num_rows - table.num_rows % _ROW_GROUP_SESSIONS
    writer.write_table(table.slice(0, whole), row_group_size=_ROW_GROUP_SESSIONS)
    return table.slice(whole)


def _notes(recipe: Preprocess, log: engine.Log, known: Fitted | None) -> list[str]:
    """What may not be meant: other sessions than in `known`, a clock that must have been wrong."""
    notes = [] if recipe.timestamp is None else _far_times(log)
    if known is not None and (others := recipe.other_sessions(known.recipe)):
        keys = ", ".join(f"`{key}`" for key in others)
        notes.append(f"The earlier data were made with other {keys}: their sessions are others.")
    return notes


def _far_times(log: engine.Log) -> list[str]:
    ends = np.concatenate([part.ends for part in log.parts])
    first, middle = min(part.first for part in log.parts), int(np.median(ends))
    last = int(ends.max())
    if max(last - middle, middle - first) <= _FAR_MICROSECONDS:
        return []
    return [
        f"Times go from {_date(first)} to {_date(last)}, while half of the sessions end before "
        f"{_date(middle)}. One wrong clock moves a split by time: set `timestamp.earliest` and "
        "`timestamp.latest` to drop such rows."
    ]


def _date(microseconds: int) -> str:
    return f"{np.datetime64(int(microseconds), 'us').astype('datetime64[s]')}Z"
