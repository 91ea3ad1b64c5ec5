"""`pipeline preprocess`: logs to a data directory."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.core.artifact import check_replaceable, new_artifact, read_manifest
from pipeline.core.columns import FITTED_DIRECTORY, SESSIONS_DIRECTORY
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.merlin import begin_import, has_cudf
from pipeline.data.fingerprint import data_fingerprint
from pipeline.data.fitted import ITEMS_FILE, Fitted, ValueType
from pipeline.logs.files import check_tables, find_logs
from pipeline.preprocessing import engine
from pipeline.preprocessing.cluster import Workers, check_shared, connect, workers
from pipeline.preprocessing.gpu import frames
from pipeline.preprocessing.gpu.log import read_on_device
from pipeline.preprocessing.gpu.reading import NotOnDeviceError
from pipeline.preprocessing.item_values import ItemValues
from pipeline.preprocessing.notes import date, notes, unknown_notes
from pipeline.preprocessing.report.counts import PartCounts, Window, window_of
from pipeline.preprocessing.report.page import write_report
from pipeline.preprocessing.session_files import SessionWriter
from pipeline.preprocessing.sorting.log import Log, read_sorted
from pipeline.preprocessing.split import LEFT_OUT, PARTS, parts_of, rows_of, split_sessions
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.split import Split

_PartLog = tuple[Log, list[NDArray[Any]] | None]
"""Log of the sessions of a part, and their part numbers by shard; None takes all sessions."""


@dataclass(frozen=True)
class _Job:
    """Shared settings and resources of the steps of a run."""

    recipe: Preprocess
    base: Fitted | None
    """Fitted state that the run extends."""
    operators: Path | None
    directory: Path
    """The data directory while it is written."""
    scratch: Path
    """Folder for sorting, visible to all workers."""
    pool: Workers
    is_remote: bool
    """Whether workers of a cluster read the fitted state from `directory`."""
    wait_for_import: Callable[[], None]
    """Block until NVTabular is imported."""
    progress: tqdm
    notes: list[str] = field(default_factory=list)
    """Notes on logs that the CPU engine reads in place of the GPU engine."""


def preprocess(
    recipe: Preprocess,
    logs: list[Path],
    test_logs: list[Path],
    out: Path,
    *,
    cluster: str | None = None,
    valid_logs: Sequence[Path] = (),
    base: Path | None = None,
    operators: Path | None = None,
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """Write a data directory to `out`; returns the facts of its manifest.

    Statistics come from the training sessions alone; if the last interactions are held out, the
    catalogue has the items of all interactions.

    Args:
        recipe: preprocess section of a recipe logs: files and folders of the log test_logs,
        valid_logs: files and folders of test and validation sessions, in place of `split` out:
        directory to write or replace cluster: address of a Dask scheduler whose workers see the
        folder of `out` under the same
            path, or `local`, or `local-cuda`; the output does not depend on it
        base: data directory whose indices and scales are kept and extended
        operators: Python file of the recipe's NVTabular operators, which is executed
        fingerprint: `data_fingerprint` of these arguments, if it is already computed
    """
    check_arguments(recipe, {"valid": valid_logs, "test": test_logs}, out)
    other_logs = {"valid": find_logs(recipe, valid_logs), "test": find_logs(recipe, test_logs)}
    logs = find_logs(recipe, logs)
    fingerprint = fingerprint or data_fingerprint(
        recipe, logs, other_logs["test"], base, operators, valid_logs=other_logs["valid"]
    )
    base_fitted = None if base is None else _read_base(recipe, base)
    facts: dict[str, Any] = {}
    with (
        engine.copy_on_write(),
        new_artifact(out, "data", facts, fingerprint=fingerprint) as directory,
        _job(recipe, base_fitted, operators, directory, cluster) as job,
    ):
        log = _read(job, logs, "log")
        job.wait_for_import()
        facts["engine"] = "cudf" if has_cudf() else "pandas"
        facts["rows"] = {"input": log.report.facts(log.rows)}
        splits = _split(recipe, log)
        fitted = _fit(job, log, splits)
        facts["notes"] = notes(recipe, log, fitted, base_fitted)
        part_logs = _part_logs(job, log, splits, other_logs, facts["rows"])
        facts["notes"] += job.notes
        facts["sessions"], counts = _write_sessions(job, fitted, part_logs)
        facts["catalogue_items"] = len(fitted.item.values)
        if base_fitted is not None:
            facts["notes"] += unknown_notes(base_fitted, counts)
            facts["new_items"] = len(fitted.item.values) - len(base_fitted.item.values)
        facts["max_sequence_length"] = recipe.max_sequence_length
        facts["left_out"] = _left_out(recipe, log, splits)
        job.progress.set_description("report")
        facts |= write_report(directory, fitted, facts, counts)
    return facts


def _part_logs(
    job: _Job,
    log: Log,
    splits: list[NDArray[Any]],
    other_logs: Mapping[str, Sequence[Path]],
    rows: dict[str, Any],
) -> dict[str, _PartLog]:
    """Log of each part, in the order of `PARTS`; adds the `rows` of parts with their own logs."""
    part_logs: dict[str, _PartLog] = dict.fromkeys(parts_of(job.recipe), (log, splits))
    for name, files in other_logs.items():
        if files:
            other_log = _read_other(job, list(files), name, log)
            rows[name] = other_log.report.facts(other_log.rows)
            part_logs[name] = (other_log, None)
    return {name: part_logs[name] for name in PARTS if name in part_logs}


def check_arguments(recipe: Preprocess, logs: Mapping[str, Sequence[Path]], out: Path) -> None:
    """ConfigError for settings that exclude each other; ArtifactError if `out` is taken.

    `logs` are those of the parts with their own logs.
    """
    for name, files in logs.items():
        if files and recipe.split.held_out:
            raise ConfigError(
                f"`split: {recipe.split.by}` takes the parts from the log itself. Leave out "
                f"--{name}, or split by time."
            )
        if files and getattr(recipe.split, name) is not None:
            raise ConfigError(
                f"Both --{name} and `split.{name}` name the {name} sessions. Give --{name} files, "
                f"or leave the choice to `split.{name}` in the recipe."
            )
    for name, share in (("valid", recipe.split.valid), ("test", recipe.split.test)):
        if isinstance(share, str) and recipe.split.by == "time" and recipe.timestamp is None:
            raise ConfigError(
                f"`split.{name}: {share}` is a span of time but the recipe has no `timestamp`. "
                "Add one, or use a fraction."
            )
    check_replaceable(out, "data")
    check_tables(recipe)


def _read_base(recipe: Preprocess, base: Path) -> Fitted:
    """Fitted state of `base`. ConfigError if its recipe has other features."""
    read_manifest(base, "data")
    fitted = Fitted.read(base)
    for name, own, of_base in (
        ("features", recipe.feature_meanings, fitted.recipe.feature_meanings),
        ("time features", recipe.time_feature_names, fitted.recipe.time_feature_names),
    ):
        if own != of_base:
            raise ConfigError(
                f"The recipe's {name} are not those of {base}. Preprocess all logs without --from, "
                "or give the recipe that it was made with."
            )
    return fitted


@contextmanager
def _job(
    recipe: Preprocess,
    base: Fitted | None,
    operators: Path | None,
    directory: Path,
    cluster: str | None,
) -> Iterator[_Job]:
    """Workers, scratch directory and progress bar of a run."""
    if cluster is None and operators is None:
        wait = begin_import("pipeline.preprocessing.workflow")
    else:  # a file of operators imports NVTabular
        wait = lambda: None  # noqa: E731
    with ExitStack() as stack:
        # beside the output, where there is space and the workers have access
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        client = stack.enter_context(connect(cluster))
        pool = stack.enter_context(workers(client))
        progress = stack.enter_context(
            tqdm(desc="read", unit="row", unit_scale=True, leave=False, disable=None)
        )
        if client is not None:
            check_shared(client, scratch)
        yield _Job(
            recipe, base, operators, directory, scratch, pool, client is not None, wait, progress
        )


def _read_other(job: _Job, files: list[Path], name: str, log: Log) -> Log:
    """Read and sort the log of another part, without the column of the split.

    Columns that only expressions read have no fixed type, so that a new category is not read as
    missing.
    """
    recipe = job.recipe.model_copy(update={"split": Split()})
    inputs = {feature.name for feature in recipe.expression_inputs}
    types = {column: kind for column, kind in log.types.items() if column not in inputs}
    return _read(replace(job, recipe=recipe), files, name, types)


def _read(
    job: _Job, files: list[Path], name: str, types: dict[str, ValueType] | None = None
) -> Log:
    """Read and sort a log; id columns get `types`, or those of the base."""
    if types is None and job.base is not None:
        types = {column: v.type for column, v in job.base.of_columns.items()}
        types |= {column: e.type for column, e in job.base.target_encodings.items()}
    if (device := frames.device_frames()) is not None and not job.is_remote:
        try:
            return read_on_device(device, job.recipe, files, types)
        except NotOnDeviceError as reason:
            job.notes.append(f"The {name} was sorted by the CPU: {reason}.")
        except MemoryError:
            job.notes.append(f"The {name} was sorted by the CPU: the memory of the GPU was full.")
    directory = job.scratch / name
    directory.mkdir()
    directory.chmod(0o777)  # workers may run as another user
    return read_sorted(job.recipe, files, directory, job.pool, types, job.operators)


def _split(recipe: Preprocess, log: Log) -> list[NDArray[Any]]:
    """Part numbers of the sessions of each shard. DataError if a part has no session."""
    lengths = [shard.lengths for shard in log.shards]
    try:
        parts = split_sessions(recipe, log.ends, np.concatenate(lengths), log.split_keys)
    except DataError as error:
        reasons = "; ".join(log.report.sentences)
        raise DataError(f"{error} Of the log: {reasons}." if reasons else str(error)) from None
    return np.split(parts, np.cumsum([len(of_shard) for of_shard in lengths])[:-1])


def _fit(job: _Job, log: Log, splits: list[NDArray[Any]]) -> Fitted:
    """Fit the workflow and write its state. DataError if no item is frequent enough."""
    job.progress.set_description("fit")
    job.progress.update(log.rows)
    fitted = engine.fit(job.recipe, log, splits, job.pool, job.base)
    if not len(fitted.item.values):
        num_training = sum(
            int(rows_of(job.recipe, split, shard.lengths)["train"].sum())
            for split, shard in zip(splits, log.shards, strict=True)
        )
        raise DataError(
            f"No item for training: none is seen {job.recipe.min_item_count} times or more in "
            f"{num_training} interactions. Check `item` or lower `min_item_count`."
        )
    fitted.write(job.directory)
    return fitted


def _write_sessions(
    job: _Job, fitted: Fitted, part_logs: dict[str, _PartLog]
) -> tuple[dict[str, dict[str, Any]], dict[str, PartCounts]]:
    """Write the sessions of each part, the item values and the schema.

    Returns facts and counts of each part.
    """
    from pipeline.preprocessing.workflow import write_schema

    job.progress.set_description("transform")
    window = _report_window(job.recipe, [log for log, _ in part_logs.values()])
    state = job.directory if job.is_remote else fitted
    item_values = ItemValues(fitted)
    facts: dict[str, dict[str, Any]] = {}
    counts = {name: PartCounts(fitted, window) for name in part_logs}
    for name, (log, splits) in part_logs.items():
        sessions = engine.sessions_of(state, log, splits, name, job.pool, window)
        facts[name] = _write_part(job, name, sessions, item_values, counts[name])
    log, _ = part_logs["train"]
    if (items := item_values.table(log.item_table)) is not None:
        pq.write_table(items, job.directory / FITTED_DIRECTORY / ITEMS_FILE)
    write_schema(engine.schema_of(fitted, log), job.recipe, job.directory)
    return facts, counts


def _write_part(
    job: _Job,
    name: str,
    sessions: Iterator[engine.EncodedSessions],
    item_values: ItemValues,
    counts: PartCounts,
) -> dict[str, Any]:
    """Write the sessions of a part and collect their item values and counts; returns its facts."""
    writer = SessionWriter(job.directory / SESSIONS_DIRECTORY / name)
    num_sessions = num_interactions = 0
    times = []
    for of_shard in sessions:
        item_values.add(of_shard.item_values)
        counts.add(of_shard.counts)
        times += [of_shard.first, of_shard.last]
        num_interactions += of_shard.interactions
        num_sessions += of_shard.table.num_rows
        writer.write(of_shard.table)
    writer.close()
    has_time = job.recipe.timestamp is not None
    return {
        "sessions": num_sessions,
        "interactions": num_interactions,
        "first": date(min(times)) if has_time else None,
        "last": date(max(times)) if has_time else None,
    }


def _report_window(recipe: Preprocess, logs: list[Log]) -> Window | None:
    """Hours that the data report counts; None without a timestamp."""
    if recipe.timestamp is None:
        return None
    ends = np.concatenate([log.ends for log in logs])
    return window_of(min(log.first for log in logs), int(np.median(ends)), int(ends.max()))


def _left_out(recipe: Preprocess, log: Log, splits: list[NDArray[Any]]) -> dict[str, int]:
    """Number of sessions and interactions in no part, as they are too short for training."""
    masks = [split == LEFT_OUT for split in splits]
    if count := recipe.split.held_out:  # longer sessions are targets of another part
        masks = [
            mask & (shard.lengths <= count) for mask, shard in zip(masks, log.shards, strict=True)
        ]
    lengths = [shard.lengths[mask] for mask, shard in zip(masks, log.shards, strict=True)]
    return {
        "sessions": sum(map(len, lengths)),
        "interactions": sum(int(of_shard.sum()) for of_shard in lengths),
    }
