"""`pipeline preprocess --workflow`: a log through a user's NVTabular workflow."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from merlin.io import Dataset
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.core.artifact import new_artifact
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.merlin import has_cudf
from pipeline.data.fingerprint import data_fingerprint
from pipeline.data.fitted import Fitted, SavedWorkflow, Standardization
from pipeline.logs.files import find_logs
from pipeline.preprocessing.cluster import Workers, workers
from pipeline.preprocessing.notes import date
from pipeline.preprocessing.parquet_sessions import (
    SessionTables,
    check_columns,
    data_recipe,
    longest_list,
    read_schema,
    session_type,
    write_sessions,
)
from pipeline.preprocessing.run import check_arguments
from pipeline.preprocessing.sorting.log import Log, Shard, read_sorted
from pipeline.preprocessing.split import LEFT_OUT, PARTS, parts_of, split_sessions
from pipeline.preprocessing.user_file import describe_error
from pipeline.preprocessing.workflows.block_check import check_blocks
from pipeline.preprocessing.workflows.columns import (
    OutputColumns,
    output_columns,
    vocabularies_of,
)
from pipeline.preprocessing.workflows.graph import UserWorkflow
from pipeline.preprocessing.workflows.log import Kind, LogFrames, column_kinds, mask_of
from pipeline.preprocessing.workflows.saving import save_workflow
from pipeline.preprocessing.workflows.table_form import table_form
from pipeline.recipe.features import ColumnNumber
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve.runtime.workflows.executor import execute, fit, read_all_folds

_OF_RECIPE = (
    *("features", "item_table", "session_table", "min_item_count"),
    *("session_gap", "drop_repeats", "filter_seen"),
)
"""Recipe keys that a workflow replaces, or that requests could not follow."""

_SAMPLE_ROWS = 20_000
"""Interactions of the sample of the block check."""


@dataclass(frozen=True)
class _Part:
    """Sessions of one part: shards, each with a mask of its interactions."""

    shards: list[Shard]
    masks: list[NDArray[Any]]


def preprocess_workflow(
    recipe: Preprocess,
    file: Path,
    logs: list[Path],
    test_logs: list[Path],
    out: Path,
    *,
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """Write a data directory from the output of the workflow of `file`; return its facts.

    The recipe defines reading and splitting; the workflow is fitted on the training sessions.
    ConfigError if the file fails, or for settings that exclude a workflow.
    """
    _check_recipe(recipe)
    check_arguments(recipe, {"test": test_logs}, out)
    logs, test_logs = find_logs(recipe, logs), find_logs(recipe, test_logs)
    fingerprint = fingerprint or data_fingerprint(recipe, logs, test_logs, workflow=file)
    facts: dict[str, Any] = {"engine": "cudf" if has_cudf() else "pandas"}
    with (
        new_artifact(out, "data", facts, fingerprint=fingerprint) as directory,
        tempfile.TemporaryDirectory(dir=directory) as name,
        workers() as pool,
    ):
        scratch = Path(name)
        user = UserWorkflow(file, scratch / "statistics")
        recipe, kinds = _log_recipe(recipe, user, logs)
        log = _read(recipe, logs, scratch / "log", pool)
        logs_read = {"input": log}
        if test_logs:
            logs_read["test"] = _read(recipe, test_logs, scratch / "test-log", pool, log)
        frames = LogFrames(recipe, user.columns, kinds, list(logs_read.values()))
        parts = _parts(recipe, log, logs_read.get("test"))
        files = _run(user, frames, parts, scratch / "sessions")
        output = output_columns(user, recipe.session)
        sample, _ = _sample(frames, parts["train"])
        workflow = save_workflow(user, recipe, frames, output, sample)
        facts |= _write(directory, recipe, user, output, files, frames, workflow)
        facts["notes"] = output.notes + facts["notes"]
        facts["rows"] = {name: each.report.facts(each.rows) for name, each in logs_read.items()}
        facts["left_out"] = _left_out(recipe, log)
        if recipe.timestamp is not None:
            for part, of_part in parts.items():
                facts["sessions"][part] |= _span(of_part)
    return facts


def _check_recipe(recipe: Preprocess) -> None:
    """ConfigError for settings of the recipe that exclude a workflow."""
    others = [
        name
        for name in _OF_RECIPE
        if getattr(recipe, name) != Preprocess.model_fields[name].get_default()
    ]
    if recipe.timestamp is not None and recipe.timestamp.features:
        others.append("timestamp.features")
    if others:
        raise ConfigError(
            f"The recipe has `{'`, `'.join(others)}`, which a workflow makes itself. With "
            "--workflow it says how the log is read and split: leave them out."
        )
    if recipe.split.held_out:
        raise ConfigError(
            f"`split: {recipe.split.by}` cuts sessions before a workflow sees them. With "
            "--workflow, split by time or by a fraction."
        )


def _log_recipe(
    recipe: Preprocess, user: UserWorkflow, logs: list[Path]
) -> tuple[Preprocess, dict[str, Kind]]:
    """The recipe with the columns that the workflow reads as features, and their kinds.

    The session and the item follow from the graph unless the recipe sets them.
    """
    values = recipe.model_dump(mode="json", exclude_unset=True)
    values["session"] = session = _session(recipe, user)
    output = output_columns(user, session)
    values["item"] = item = output.columns[0].raw
    if "item" in recipe.model_fields_set and recipe.item != item:
        raise ConfigError(
            f"{user.file} makes the items of the column {item!r}, the recipe says `item: "
            f"{recipe.item}`. Leave it out of the recipe."
        )
    time = None if recipe.timestamp is None else recipe.timestamp.column
    others = [name for name in user.columns if name not in (session, item, time)]
    values["features"] = _features(others, dict.fromkeys(others, "text"))
    log_recipe = Preprocess.from_dict(values, str(user.file))
    kinds = column_kinds(log_recipe, logs)
    by_column = {f.source: kinds[f.name] for f in log_recipe.features}
    sort_columns = [user.source_of(user.groupby, c) for c in user.groupby.op.sort_cols]
    if time is None and len(sort_columns) == 1 and by_column.get(sort_columns[0]) == "time":
        values["timestamp"] = {"column": sort_columns[0]}
        others.remove(sort_columns[0])
    values["features"] = _features(others, by_column)
    log_recipe = Preprocess.from_dict(values, str(user.file))
    return log_recipe, {f.name: by_column[f.source] for f in log_recipe.features}


def _features(columns: Sequence[str], kinds: dict[str, Any]) -> list[dict[str, Any]]:
    """Recipe features that read columns of the log unchanged."""
    return [
        {
            "name": _name(column, number),
            "column": column,
            "kind": "continuous" if kinds[column] == "number" else "categorical",
        }
        for number, column in enumerate(columns)
    ]


def _name(column: str, number: int) -> str:
    """Name of the feature that reads a column: that of the column, which counts of rows report."""
    try:
        return ColumnNumber(name=column, kind="continuous").name
    except ValidationError:
        return f"column{number}"


def _session(recipe: Preprocess, user: UserWorkflow) -> str:
    """Column of the session. ConfigError if Groupby makes sessions of other columns."""
    columns = [user.source_of(user.groupby, name) for name in user.groupby.op.groupby_cols]
    if "session" not in recipe.model_fields_set and len(columns) == 1:
        return columns[0]
    if recipe.session not in columns:
        raise ConfigError(
            f"{user.file}: Groupby makes a session of the rows with the same "
            f"{' and '.join(columns)}, the recipe says `session: {recipe.session}`. Set it to one "
            "of these columns, so that no session is cut."
        )
    return recipe.session


def _read(
    recipe: Preprocess, files: list[Path], directory: Path, pool: Workers, first: Log | None = None
) -> Log:
    """Read and sort a log; id columns get the types of the `first` log."""
    directory.mkdir()
    return read_sorted(recipe, files, directory, pool, None if first is None else first.types)


def _parts(recipe: Preprocess, log: Log, test_log: Log | None) -> dict[str, _Part]:
    """Shards and masks by part."""
    parts = {}
    splits = _split(recipe, log)
    for name in parts_of(recipe):
        masks = [
            mask_of(PARTS.index(name), split, shard.lengths)
            for split, shard in zip(splits, log.shards, strict=True)
        ]
        chosen = [pair for pair in zip(log.shards, masks, strict=True) if pair[1].any()]
        parts[name] = _Part([shard for shard, _ in chosen], [mask for _, mask in chosen])
    if test_log is not None:
        masks = [np.ones(int(shard.lengths.sum()), bool) for shard in test_log.shards]
        parts["test"] = _Part(test_log.shards, masks)
    return parts


def _split(recipe: Preprocess, log: Log) -> list[NDArray[Any]]:
    lengths = [shard.lengths for shard in log.shards]
    splits = split_sessions(recipe, log.ends, np.concatenate(lengths), log.split_keys)
    return np.split(splits, np.cumsum([len(of_shard) for of_shard in lengths])[:-1])


def _left_out(recipe: Preprocess, log: Log) -> dict[str, int]:
    """Sessions that are too short for training, and their interactions."""
    lengths = np.concatenate([shard.lengths for shard in log.shards])
    left_out = np.concatenate(_split(recipe, log)) == LEFT_OUT
    return {"sessions": int(left_out.sum()), "interactions": int(lengths[left_out].sum())}


def _run(
    user: UserWorkflow, frames: LogFrames, parts: dict[str, _Part], directory: Path
) -> dict[str, list[Path]]:
    """Fit the workflow on the training sessions and write the sessions of all parts."""
    try:
        fit(user.workflow, _dataset(frames, parts["train"]))
        files = {"train": _transform(user, frames, parts["train"], directory / "train")}
        read_all_folds(user.workflow)
        check_blocks(user, *_sample(frames, parts["train"]))
        for name in parts.keys() - {"train"}:
            files[name] = _transform(user, frames, parts[name], directory / name)
    except (ConfigError, DataError):
        raise
    except (Exception, SystemExit) as error:  # operators of the user may raise anything
        raise ConfigError(f"{user.file} failed{describe_error(user.file, error)}") from error
    return files


def _dataset(frames: LogFrames, part: _Part) -> Dataset:
    """Merlin's dataset of a part, with one shard of whole sessions per partition."""
    from dask.dataframe import from_map  # type: ignore[attr-defined]

    def load(number: int) -> Any:
        path = part.shards[number].path
        assert path is not None  # noqa: S101
        return frames.frame(path, part.masks[number])

    numbers = list(range(len(part.shards)))
    data = from_map(load, numbers, meta=load(0).iloc[:0], enforce_metadata=False)
    return Dataset(data, cpu=not has_cudf())


def _sample(frames: LogFrames, part: _Part) -> tuple[Any, list[int]]:
    """Frame of some whole sessions, and their lengths."""
    shard, mask = part.shards[0], part.masks[0]
    assert shard.path is not None  # noqa: S101
    starts = np.cumsum(shard.lengths) - shard.lengths
    lengths = shard.lengths[mask[starts]]
    lengths = lengths[: 1 + int(np.searchsorted(np.cumsum(lengths), _SAMPLE_ROWS))]
    chosen = mask & (np.cumsum(mask) <= lengths.sum())
    return frames.frame(shard.path, chosen), lengths.tolist()


def _transform(user: UserWorkflow, frames: LogFrames, part: _Part, directory: Path) -> list[Path]:
    directory.mkdir(parents=True)
    files = []
    for number, (shard, mask) in enumerate(zip(part.shards, part.masks, strict=True)):
        assert shard.path is not None  # noqa: S101
        sessions = execute(user.workflow, frames.frame(shard.path, mask))
        table = pa.Table.from_pandas(
            sessions.to_pandas() if hasattr(sessions, "to_pandas") else sessions,
            preserve_index=False,
        ).replace_schema_metadata(None)
        files.append(directory / f"{number}.parquet")
        pq.write_table(table, files[-1])
    return files


def _write(
    directory: Path,
    recipe: Preprocess,
    user: UserWorkflow,
    output: OutputColumns,
    files: dict[str, list[Path]],
    frames: LogFrames,
    workflow: SavedWorkflow,
) -> dict[str, Any]:
    """Write the sessions into a data directory; return their facts."""
    columns, session = output.columns, output.session
    check_columns(files, columns, session, str(user.file))
    vocabularies = vocabularies_of(output, files["train"])
    length = _length(recipe, output, files)
    fitted = Fitted(
        recipe=data_recipe(
            output.columns, recipe.session, length, missing=recipe.missing, source="the workflow"
        ),
        session_type=session_type(read_schema(files["train"][0]), session),
        timestamp_type=None,
        vocabularies=vocabularies,
        standardizations={
            c.name: Standardization(mean=0.0, deviation=1.0) for c in columns if not c.is_index
        },
        operator_steps={
            c.name: table_form(
                c, output.lineages[c.name], frames.column(c.raw), vocabularies.get(c.name)
            )
            for c in columns
        },
        workflow=workflow,
    )
    return write_sessions(directory, SessionTables(files, columns, session, fitted))


def _length(recipe: Preprocess, output: OutputColumns, files: dict[str, list[Path]]) -> int:
    """L of the recipe, else the length of ListSlice, else the longest session."""
    if "max_sequence_length" in recipe.model_fields_set:
        return recipe.max_sequence_length
    item = output.columns[0]
    for step in reversed(output.lineages[item.name].path):
        if (length := getattr(step.operator, "start", 0)) < 0:
            return -int(length)
    return longest_list(files, item)


def _span(part: _Part) -> dict[str, str]:
    """First and last time of a part."""
    sessions = [np.add.reduceat(mask, np.cumsum(shard.lengths) - shard.lengths) > 0
                for shard, mask in zip(part.shards, part.masks, strict=True)]  # fmt: skip
    pairs = list(zip(part.shards, sessions, strict=True))
    begins = min(int(shard.begins[chosen].min()) for shard, chosen in pairs)
    ends = max(int(shard.ends[chosen].max()) for shard, chosen in pairs)
    return {"first": date(begins), "last": date(ends)}
